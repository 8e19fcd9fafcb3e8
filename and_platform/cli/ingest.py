"""`andp ingest`: sounds into the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from and_platform import db
from and_platform.backends.datasets import Source
from and_platform.cli.main import bars
from and_platform.cli.output import messages, print_json
from and_platform.services import provenance
from and_platform.services.ingest import IngestReport
from and_platform.services.ingest import ingest as run_ingest

Command = TypeVar("Command", bound=Callable[..., Any])

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group("ingest")
def command() -> None:
    """Bring sounds in: WAV, FLAC, OGG or MP3, of any rate, channels and bit depth.

    The audio stays where it is; the database keeps its path, content hash, labels and acoustic measures. Run it again
    at any time: what is new is added, what changed is reported, nothing is doubled. A broken file is recorded with
    its reason (andp failures), and the rest goes in.
    """


def _options(made: Command) -> Command:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."),
        click.option(
            "--allow-outside", is_flag=True,
            help="Follow links that lead out of the folder; else what they lead to is left out and recorded as a failure.",
        ),
        click.option("--prune", is_flag=True, help="Retire clips whose files are gone; else they are only reported."),
        click.option(
            "--processes", type=click.IntRange(min=1),
            help="Processes that decode. Default: ANDP_DECODE_PROCESSES, or one per core.",
        ),
        click.option("--name", help="Name of the data set. Default: that of the folder, or of the published data set."),
    ):  # fmt: skip
        made = option(made)
    return made


@command.command()
@click.argument("directory", type=_FOLDER)
@_options
@click.pass_context
def folder(ctx: click.Context, /, directory: Path, **options: Any) -> None:
    """All sound files in DIRECTORY; its subfolders are labels.

    The first level of subfolders gives the label, whatever lies below it; a file right in DIRECTORY has none. Hidden
    files are left out.

    \b
    Examples:
      andp ingest folder ~/sounds
      andp ingest folder ~/sounds --name field-recordings
    """
    _ingest(ctx, Source("folder", directory), options)


@command.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--root", type=_FOLDER, help="Folder that the paths are relative to. Default: FILE's folder.")
@_options
@click.pass_context
def manifest(ctx: click.Context, /, file: Path, root: Path | None, **options: Any) -> None:
    """The files that FILE lists: CSV, TSV, JSON Lines or Parquet.

    Columns: 'path'; 'label' or 'labels' (with ';' between them, or a JSON list); 'caption'; 'fold', a whole number.
    Any other column is kept with the clip (clips.extra).

    \b
    Examples:
      andp ingest manifest ~/sounds/manifest.csv
      andp ingest manifest clips.parquet --root /data/audio --name clips
    """
    _ingest(ctx, Source("manifest", file, root), options)


@command.command()
@click.argument("directory", type=_FOLDER)
@_options
@click.pass_context
def esc50(ctx: click.Context, /, directory: Path, **options: Any) -> None:
    """ESC-50 as published: meta/esc50.csv and audio/*.wav in DIRECTORY.

    \b
    Example:
      andp ingest esc50 ~/ESC-50-master
    """
    _ingest(ctx, Source("esc50", directory), options)


@command.command()
@click.argument("directory", type=_FOLDER)
@_options
@click.pass_context
def urbansound8k(ctx: click.Context, /, directory: Path, **options: Any) -> None:
    """UrbanSound8K as published: metadata/UrbanSound8K.csv and audio/fold1 to fold10 in DIRECTORY.

    \b
    Example:
      andp ingest urbansound8k ~/UrbanSound8K
    """
    _ingest(ctx, Source("urbansound8k", directory), options)


@command.command()
@click.argument("directory", type=_FOLDER)
@_options
@click.pass_context
def gtzan(ctx: click.Context, /, directory: Path, **options: Any) -> None:
    """GTZAN as published: genres/<genre>/* or genres_original/<genre>/* in DIRECTORY.

    \b
    Example:
      andp ingest gtzan ~/gtzan
    """
    _ingest(ctx, Source("gtzan", directory), options)


@command.command()
@_options
@click.pass_context
def sample(ctx: click.Context, /, **options: Any) -> None:
    """The sample set that travels with this package.

    \b
    Example:
      andp ingest sample
    """
    _ingest(ctx, Source.sample(), options)


def _ingest(ctx: click.Context, source: Source, options: dict[str, Any]) -> None:
    progress = bars(ctx)
    engine = db.connect(tell=progress.note)
    as_json = options.pop("as_json")
    arguments = {"location": str(source.location), "root": source.root, **options}
    if options.pop("allow_outside"):
        source = replace(source, allow_outside=True)
    with provenance.run(engine, f"ingest {source.kind}", arguments) as run:
        report = run_ingest(engine, source, progress=progress, run=run, **options)
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)


def _show(report: IngestReport) -> None:
    """The closing summary: a line of counts, then everything that did not go smoothly, with its reason."""
    out = partial(messages().print, soft_wrap=True)
    out(
        f"{report.name}: {report.usable:,} clips ({_duration(report.audio_s)}) from {report.root} "
        f"in {report.seconds:.1f} s", markup=False,
    )  # fmt: skip
    told = ("new", "changed", "restored", "unchanged", "updated", "failed", "vanished", "duplicates")
    out("  " + ", ".join(f"{n:,} {name}" for name in told if (n := getattr(report, name))))
    _list("failed", report.failed, [f"{path}: {reason}" for path, reason in report.failures])
    if report.failed:
        out(f"  all of them: andp failures --dataset {report.name}", markup=False)
    what = "vanished, retired" if report.pruned else "vanished, kept (--prune retires them)"
    _list(what, report.vanished, report.vanished_paths)
    _list("same content", report.duplicates, [" = ".join(group) for group in report.duplicate_groups])


def _list(what: str, total: int, lines: list[str]) -> None:
    if not total:
        return
    out = partial(messages().print, soft_wrap=True)
    out(f"{what}: {total:,}")
    for line in lines[:10]:
        out(f"  {line}", markup=False)
    if total > len(lines[:10]):
        out("  …")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
