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
@click.argument("recordings", metavar="RECORDING...", type=int, nargs=-1)
@click.option("--unused", is_flag=True, help="All that no dissection reads.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def drop(ctx: click.Context, recordings: tuple[int, ...], unused: bool, yes: bool) -> None:
    """Drop recordings that no dissection reads; their activations go at once.

    Others may record, fold and match meanwhile. Killed half-way, the same command drops the rest.

    \b
    Examples:
      andp recordings drop 3
      andp recordings drop 3 5 --yes
      andp recordings drop --unused
    """
    if bool(recordings) == unused:
        raise click.UsageError("name the recordings, or give --unused")
    engine = db.connect(tell=bars(ctx).note)
    chosen = record.unused(engine) if unused else list(dict.fromkeys(recordings))
    if not chosen:
        messages().print("every recording is read by a dissection; nothing was dropped")
        return
    if not yes:
        click.confirm(f"Drop {_named(chosen)}?", abort=True, err=True)
    for recording in chosen:
        freed = record.drop(engine, recording, progress=bars(ctx))
        messages().print(f"dropped recording {recording}: {freed / 1e6:,.1f} MB")


def _named(recordings: list[int]) -> str:
    listed = ", ".join(map(str, recordings[:10])) + (" …" if len(recordings) > 10 else "")
    return f"recording {listed}" if len(recordings) == 1 else f"{len(recordings)} recordings ({listed})"
