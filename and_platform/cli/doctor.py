"""`andp doctor`: is everything here?"""

from __future__ import annotations

import sys

import click

from and_platform.cli.output import format_options, messages, show_rows
from and_platform.services import doctor, profiles

_MARKS = {"ok": "ok", "warning": "!", "missing": "✗"}


@click.command("doctor")
@click.option(
    "--profile",
    "name",
    default=profiles.DEFAULT,
    show_default=True,
    metavar="NAME",
    help="The profile to check against.",
)
@format_options
def command(name: str, output_format: str) -> None:
    """Check this machine: installation, database, memory, disk, GPU, and the models of a profile.

    Nothing is downloaded or changed. The exit status is 1 where something that the profile needs is missing.

    \b
    Examples:
      andp doctor
      andp doctor --profile paper
      andp doctor --profile current --json
    """
    checks = doctor.examine(profiles.load(name))
    rows = [check._asdict() for check in checks]
    if output_format == "table":
        rows = [
            {"": _MARKS[row["status"]], **{k: row[k] for k in ("check", "found")}, "do": row["advice"]} for row in rows
        ]
    show_rows(rows, output_format, title=f"this machine and the profile {name}")
    missing = sum(check.status == "missing" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    if missing:
        messages().print(f"{missing} missing, {warnings} warnings", markup=False)
        sys.exit(1)
    messages().print("all there" + (f"; {warnings} warnings" if warnings else ""), markup=False)
