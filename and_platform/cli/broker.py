"""`andp broker`: what the workers' messages go through."""

from __future__ import annotations

import sys

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import print_json, show_rows
from and_platform.config import settings


@click.group("broker")
def command() -> None:
    """The message broker of the workers."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Tell what is wrong with the broker, and what to do about it. Changes nothing.

    Can it be reached; what waits in its queues, and is there a worker for each; are messages kept long enough for the
    longest unit seen, and safe when it restarts. The exit status is 1 where something is an error.

    \b
    Examples:
      andp broker check
      ANDP_BROKER_URL=amqp://andp:secret@queue.example andp broker check --json
    """
    from workers.brokers import check as look

    findings = look(settings(), db.connect(tell=bars(ctx).note))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        show_rows([dict(zip(("level", "check", "found", "do"), finding, strict=True)) for finding in findings], "table")
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)
