"""`andp runs`: each command that wrote something, and those that workers are at."""

from __future__ import annotations

import sys
import time
from typing import Any

import click
import sqlalchemy as sa

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import Watch, duration, format_options, messages, print_json, show_rows
from and_platform.config import settings
from and_platform.errors import AndpError
from and_platform.services import journal
from and_platform.services.distribution import runs as service

_POLL_S = 0.5
_LONELY_S = 10.0


@click.group("runs")
def command() -> None:
    """Runs: what was asked, when, with which versions, and how it ended; those of workers can be watched and steered."""


@command.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="How many, from the newest.")
@format_options
@click.pass_context
def list_(ctx: click.Context, limit: int, output_format: str) -> None:
    """List the latest runs.

    \b
    Example:
      andp runs list --limit 5
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        rows = journal.runs(session, limit)
    if output_format == "table":
        rows = [{**row, "counts": _told(row["counts"])} for row in rows]
    show_rows(rows, output_format, empty="no runs yet")


def _told(counts: dict[str, Any]) -> str:
    """What was done, a stage with its number."""
    return ", ".join(
        f"{stage} {count['computed']:,}"
        for stage, count in counts.items()
        if isinstance(count, dict) and "computed" in count
    )


@command.command()
@click.argument("run_id", metavar="ID", type=int)
@click.option("--failed", is_flag=True, help="The units that failed, each with its traceback.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.pass_context
def show(ctx: click.Context, run_id: int, failed: bool, as_json: bool) -> None:
    """Show everything about run ID: arguments, versions, machine, counts, error.

    Of a run that workers do: its steps with counts, rate and time left, and why units failed or wait.

    \b
    Examples:
      andp runs show 12
      andp runs show 12 --failed
    """
    with db.reading(db.connect(tell=bars(ctx).note)) as session:
        row = journal.run(session, run_id)
        steps = service.progress(session, run_id) if row["distributed"] else []
        reasons = service.reasons(session, run_id) if row["distributed"] else []
        units = service.units(session, run_id, "failed") if failed else []
    if as_json:
        print_json({**row, "steps": steps, "reasons": reasons, **({"units": units} if failed else {})})
        return
    shown = {key: value for key, value in row.items() if key not in ("plan",) and (value or key != "error")}
    show_rows([{"": key.replace("_", " "), "value": value} for key, value in shown.items()], "table")
    if steps:
        show_rows([_step(step) for step in steps], "table", title="\nsteps")
    if reasons:
        show_rows(reasons, "table", title="\nwhy units failed, or are tried again")
    for unit in units:
        messages().print(
            f"\nunit {unit['id']} ({unit['step']}), {unit['attempts']} tries: {unit['reason']}", markup=False
        )
        messages().print(unit["traceback"] or "its process died: there is no traceback", markup=False)
    if row["distributed"] and any(step["failed"] for step in steps):
        messages().print(f"\nwhen the reasons are put right: andp runs retry {run_id}", markup=False)


def _step(step: dict[str, Any]) -> dict[str, Any]:
    rate = step["rate"]
    return {
        "step": step["step"], "queue": step["queue"], "state": step["state"], "units": step["units"], "done": step["done"],
        "running": step["running"], "failed": step["failed"], "retries": step["retries"], "size": step["size"],
        "unit": step["unit"], "per second": rate, "workers' time": None if step["seconds"] is None else duration(step["seconds"]),
        "left": None if step["seconds_left"] is None else duration(step["seconds_left"]),
    }  # fmt: skip


@command.command()
@click.argument("run_id", metavar="ID", type=int)
@click.pass_context
def watch(ctx: click.Context, run_id: int) -> None:
    """Follow run ID, which workers do, to its end. Ctrl-C ends the watching, not the run.

    The exit status is 0 if it went well, 1 if it failed or was cancelled.

    \b
    Example:
      andp runs watch 12
    """
    _to_the_end(ctx, db.connect(tell=bars(ctx).note), run_id)


def _to_the_end(ctx: click.Context, engine: sa.Engine, run_id: int) -> None:
    """Follow a run, and tell what it came to, as the command that began it does."""
    from and_platform.cli.dissect import print_outcome

    print_outcome(engine, run_id, follow(ctx, engine, run_id))


def follow(ctx: click.Context, engine: sa.Engine, run_id: int) -> dict[str, Any]:
    """Draw a run's steps until it is over; returns how it ended.

    Raises
    ------
    AndpError
        It failed or was cancelled.
    """
    asked, lonely = time.monotonic(), False
    quiet = bool((ctx.obj or {}).get("quiet"))
    try:
        with Watch(quiet=quiet) as drawn:
            while True:
                began = time.monotonic()
                found, steps = db.patiently(lambda: _look(engine, run_id))
                took = time.monotonic() - began
                drawn.update(steps)
                if found["outcome"] != "running":
                    break
                if not lonely and time.monotonic() - asked > _LONELY_S:
                    asked = time.monotonic()
                    for queue in db.patiently(lambda: service.idle_queues(engine, run_id)):
                        lonely = True
                        drawn.note(
                            f"units wait in the queue {queue}, and no worker listens to it; "
                            f"start one: andp worker --queues {queue}"
                        )
                time.sleep(max(_POLL_S, 10 * took))  # to look takes its time where there are many units
    except KeyboardInterrupt:
        messages().print(
            f"\nrun {run_id} goes on; to watch it again: andp runs watch {run_id}; to stop it: andp runs cancel {run_id}"
        )
        sys.exit(130)
    if not found["distributed"]:
        raise AndpError(f"run {run_id} was done by the process that began it; see: andp runs show {run_id}")
    if found["outcome"] == "cancelled":
        raise AndpError(f"run {run_id} was cancelled; to go on with it: andp runs retry {run_id}")
    if found["outcome"] != "ok":
        raise AndpError(f"run {run_id} {found['outcome']}: {found['error']}")
    return found


def _look(engine: sa.Engine, run_id: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with db.reading(engine) as session:
        found = service.outcome(session, run_id)
        if not found["distributed"] and found["outcome"] == "running":
            raise AndpError(f"run {run_id} is done by the process that began it, which shows its progress itself")
        return found, service.progress(session, run_id)


@command.command()
@click.argument("run_id", metavar="ID", type=int)
@click.pass_context
def cancel(ctx: click.Context, run_id: int) -> None:
    """Do no more of run ID. Units that a worker is at are finished; what is there stays.

    \b
    Example:
      andp runs cancel 12
    """
    left = service.cancel(db.connect(tell=bars(ctx).note), run_id)
    messages().print(
        f"run {run_id} is cancelled; {left:,} units were not begun. To go on with it: andp runs retry {run_id}"
    )


@command.command()
@click.argument("run_id", metavar="ID", type=int)
@click.option("--detach", is_flag=True, help="Do not watch it.")
@click.pass_context
def retry(ctx: click.Context, run_id: int, detach: bool) -> None:
    """Take run ID up again: units that failed or were cancelled are tried anew.

    \b
    Example:
      andp runs retry 12
    """
    from workers import brokers

    engine = db.connect(tell=bars(ctx).note)
    with brokers.sending(settings()) as messenger:
        back = service.retry(engine, run_id, messenger, window=settings().queue_window)
    messages().print(f"run {run_id} goes on; {back:,} units are tried again")
    if not detach:
        _to_the_end(ctx, engine, run_id)
