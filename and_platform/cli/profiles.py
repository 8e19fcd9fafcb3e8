"""`andp profiles`: sets of models that belong together."""

from __future__ import annotations

from typing import Any

import click

from and_platform.cli.output import console, format_options, print_json, show_rows
from and_platform.services import profiles


@click.group("profiles")
def command() -> None:
    """Profiles: sets of models that belong together, for andp dissect --profile."""


@command.command("list")
@format_options
def list_(output_format: str) -> None:
    """List the profiles, with what they download and the memory of their largest model."""
    rows = [_overview(profiles.load(name)) for name in profiles.names()]
    show_rows(rows, output_format)


@command.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def show(name: str, as_json: bool) -> None:
    """Show what a profile is made of: models, downloads, memory, extras, licences, and why each was chosen.

    \b
    Examples:
      andp profiles show paper
      andp profiles show current --json
    """
    profile = profiles.load(name)
    if as_json:
        needs = [{**vars(need), "here": need.here, "extra_missing": need.extra_missing} for need in profile.needs]
        print_json({**_overview(profile), "dissect": profile.dissect, "needs": needs})
        return
    out = console()
    out.print(f"[bold]{profile.name}[/bold]  ", end="")
    out.print(profile.description, markup=False)
    out.print()
    show_rows(
        [
            {
                "part": need.part, "model": need.model, "download_GB": need.gigabytes, "memory_GB": need.memory_gb,
                "GPU_GB": need.gpu_gb or None, "extra": need.extra or None, "here": need.here, "licence": need.licence,
            }
            for need in profile.needs
        ],
        "table",
    )  # fmt: skip
    for need in profile.needs:
        out.print(f"\n{need.part}: {need.model}", markup=False, style="bold")
        out.print(f"  why: {need.why}", markup=False)
        if need.here is not True or need.extra_missing:
            out.print(f"  get: {need.get}", markup=False)
    out.print(
        f"\nin all: {profile.gigabytes:.1f} GB of downloads; the largest model takes {profile.memory_gb:g} GB"
        f"{f' (GPU: {profile.gpu_gb:g} GB)' if profile.gpu_gb else ''}; sizes are the publishers', rounded",
        markup=False,
    )
    out.print("\noptions of andp dissect", style="bold")
    for key, value in profile.dissect.items():
        out.print(f"  {key} = {value}", markup=False)
    out.print(f"\nandp doctor --profile {profile.name}   looks whether this machine has it all", markup=False)


def _overview(profile: profiles.Profile) -> dict[str, Any]:
    return {
        "profile": profile.name, "description": profile.description, "download_GB": round(profile.gigabytes, 1),
        "memory_GB": profile.memory_gb, "GPU_GB": profile.gpu_gb or None,
    }  # fmt: skip
