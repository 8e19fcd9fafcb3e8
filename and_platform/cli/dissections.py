"""`andp dissections`: dissections that have been made."""

from __future__ import annotations

import click

from and_platform import db
from and_platform.cli.main import bars
from and_platform.cli.output import cell, console, format_options, messages, print_json, show_rows
from and_platform.services import dissections


@click.group("dissections")
def command() -> None:
    """Dissections: list, look at, compare, pin, drop."""


@command.command("list")
@format_options
@click.pass_context
def list_(ctx: click.Context, output_format: str) -> None:
    """List the dissections. 'current' is the one that questions go to."""
    show_rows(
        dissections.overview(db.connect(tell=bars(ctx).note)), output_format,
        empty="no dissections yet; run: andp dissect NETWORK",
    )  # fmt: skip


@command.command()
@click.argument("dissection", type=int)
@format_options
@click.pass_context
def show(ctx: click.Context, dissection: int, output_format: str) -> None:
    """Show what a dissection was made with, and what came out by layer.

    \b
    Example:
      andp dissections show 1
    """
    found = dissections.show(db.connect(tell=bars(ctx).note), dissection)
    if output_format == "json":
        print_json(found)
    elif output_format == "csv":
        show_rows(found["layers"], "csv")
    else:
        for key, value in found["dissection"].items():
            console().print(f"{key.replace('_', ' '):<18}{cell(value)}", markup=False)
        console().print()
        show_rows(found["recipes"], "table", title="recipes")
        console().print()
        show_rows(found["layers"], "table", title="layers")


@command.command()
@click.argument("left", type=int)
@click.argument("right", type=int)
@format_options
@click.pass_context
def diff(ctx: click.Context, left: int, right: int, output_format: str) -> None:
    """Compare two dissections: which recipes differ, and for how many neurons they say something else.

    \b
    Example:
      andp dissections diff 1 2
    """
    found = dissections.diff(db.connect(tell=bars(ctx).note), left, right)
    if output_format == "json":
        print_json(found)
        return
    if output_format == "csv":
        show_rows(found["recipes"], "csv")
        return
    show_rows(found["recipes"], "table", title="recipes that differ", empty="the same recipes")
    console().print()
    neurons = found["neurons"]
    console().print(f"of {neurons.pop('neurons'):,} neurons in both:")
    for key, value in neurons.items():
        console().print(f"  {value:>7,}  {key.replace('_', ' ')}")


@command.command()
@click.argument("dissection", type=int)
@click.option("--off", is_flag=True, help="Unpin it: the latest complete one is current again.")
@click.pass_context
def pin(ctx: click.Context, dissection: int, off: bool) -> None:
    """Make a dissection the current one, whatever comes later.

    \b
    Examples:
      andp dissections pin 1
      andp dissections pin 1 --off
    """
    dissections.pin(db.connect(tell=bars(ctx).note), dissection, pinned=not off)
    messages().print(f"dissection {dissection} is {'no longer pinned' if off else 'pinned'}")


@command.command()
@click.argument("dissection", type=int)
@click.pass_context
def drop(ctx: click.Context, dissection: int) -> None:
    """Drop a dissection and what no other one uses. Its recording, captions and answers stay.

    \b
    Example:
      andp dissections drop 2
    """
    gone = dissections.drop(db.connect(tell=bars(ctx).note), dissection)
    messages().print(f"dropped dissection {dissection} and {gone:,} rows that no other dissection uses")
