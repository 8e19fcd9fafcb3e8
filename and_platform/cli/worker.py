"""`andp worker`: take units of work from the queues, until told to stop."""

from __future__ import annotations

import os
import sys

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.config import settings


@click.command("worker")
@click.option("--queues", default="cpu,gpu,llm,db", show_default=True, help="Queues to take from, separated by commas.")
@click.option(
    "-c", "--concurrency", default=1, show_default=True, type=click.IntRange(min=1),
    help="Units done at a time, each in a process with models of its own.",
)  # fmt: skip
@click.option("--device", help="Where models run: cpu, cuda:0 …  Default: ANDP_DEVICE.")
@click.option(
    "--pool", default="prefork", show_default=True, type=click.Choice(["prefork", "solo"]),
    help="prefork: units run in child processes, which may die; solo: in this one, for debugging.",
)  # fmt: skip
@click.option(
    "--warm-up/--no-warm-up", default=None, help="Load the models of open runs before the first unit, or not."
)
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Answer Prometheus on this port; 0: any free one.")
@click.option("--events", is_flag=True, help="Send events for Flower (RabbitMQ and Redis).")
@click.option("--name", help="Name in logs and in the table of workers. Default: queues, process and host.")
@click.pass_context
def command(
    ctx: click.Context, queues: str, concurrency: int, device: str | None, pool: str, warm_up: bool | None,
    metrics_port: int | None, events: bool, name: str | None,
) -> None:  # fmt: skip
    """Work at what `andp dissect --distributed` has put into the queues.

    Ctrl-C, or SIGTERM, ends it after the units in work; a second Ctrl-C at once, and their units go to others. However
    it ends, nothing is lost.

    \b
    Examples:
      andp worker
      andp worker --queues gpu,db --device cuda:0
      andp worker --queues cpu --concurrency 8
      andp -v worker --queues llm --metrics-port 9464
    """
    given = {"DEVICE": device, "METRICS_PORT": metrics_port, "WARM_UP": warm_up}
    os.environ.update({f"ANDP_{setting}": str(value) for setting, value in given.items() if value is not None})
    settings.cache_clear()  # what is given here holds for this process and its children

    from workers import program
    from workers.queues import chosen

    wanted = chosen(queues.split(","))
    db.connect(tell=bars(ctx).note).dispose()  # a schema of another version is refused here, and not in each unit
    sys.exit(program.run(wanted, concurrency=concurrency, pool=pool, events=events, name=name, tell=bars(ctx).note))
