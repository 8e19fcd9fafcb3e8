"""`andp recordings`: activations that have been recorded."""

from __future__ import annotations

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import format_options, messages, show_rows
from and_platform.services import record


@click.group("recordings")
def command() -> None:
    """Recordings of activations: list, drop."""


@command.command("list")
@format_options
@click.pass_context
def list_(ctx: click.Context, output_format: str) -> None:
    """List the recordings, with their size on disk."""
    show_rows(
        record.overview(db.connect(tell=bars(ctx).note)),
        output_format,
        empty="no recordings yet; run: andp dissect NETWORK",
    )


@command.command()
@click.argument("recording", type=int)
@click.pass_context
def drop(ctx: click.Context, recording: int) -> None:
    """Drop a recording that no dissection reads; its activations go at once.

    \b
    Example:
      andp recordings drop 3
    """
    record.drop(db.connect(tell=bars(ctx).note), recording)
    messages().print(f"dropped recording {recording}")
