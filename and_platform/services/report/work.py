"""What every section of a report is given, and how its text is found."""

from __future__ import annotations

import logging
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import sqlalchemy as sa

from and_platform import db, logs, output_files
from and_platform.errors import AndpError, DatabaseUnreachableError, InputError
from and_platform.resources import resource
from and_platform.schema import Network
from and_platform.services import experiments
from and_platform.services.experiments import Subject
from and_platform.services.progress import SILENT, Advance, Progress
from and_platform.services.report.content import Block, Missing, Section
from and_platform.services.report.sounds import Store

log = logging.getLogger(__name__)

SECTIONS = (
    "about", "layers", "last-layer", "quality", "adjectives", "blocks", "ablation", "acoustics", "interpretability",
    "unlearning", "sweep", "study", "neurons", "pipeline",
)  # fmt: skip
"""Sections of a report, in order."""


@dataclass(frozen=True)
class Options:
    """What a report shows."""

    dissection: int | None = None
    """The dissection; default: the network's current one."""
    skip: tuple[str, ...] = ()
    """Sections to leave out."""
    quick: bool = False
    """Smaller experiments where something has to be computed: fewer draws, fewer points, fewer seeds."""
    stored_only: bool = False
    """Compute nothing: what is not stored is named, with the command that makes it."""
    neurons: tuple[str, ...] = ()
    """Neurons whose way through the pipeline is shown; default: three drawn at random."""
    per_layer: int = 1
    """Neurons of each layer whose outputs stand side by side."""
    seed: int = 0
    """Seed of what is drawn at random."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.skip if name not in SECTIONS]
        if unknown:
            raise InputError(f"no section '{unknown[0]}' to skip; choose from: {', '.join(SECTIONS)}")


class NotStoredError(AndpError):
    """A section's data is not there, and nothing is to be computed."""


class _Refusing:
    """A listener under which nothing is computed: work that begins is refused."""

    def __init__(self, command: str) -> None:
        self._command = command

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        if total != 0:
            raise NotStoredError(f"it is not stored in full; run: {self._command}")
        yield lambda _n: None

    def note(self, text: str) -> None:
        pass


@dataclass
class Work:
    """A report in the making, of one network or of several."""

    engine: sa.Engine
    abouts: Sequence[Subject]
    options: Options
    progress: Progress = SILENT
    store: Store = field(default_factory=Store)

    @property
    def about(self) -> Subject:
        """The only network, or the first."""
        return self.abouts[0]

    @property
    def network(self) -> str:
        return self.about.network

    @property
    def dissection(self) -> int:
        return self.about.dissection_id

    @property
    def several(self) -> bool:
        return len(self.abouts) > 1

    @property
    def networks(self) -> list[str]:
        return [about.network for about in self.abouts]

    @property
    def only_dissection(self) -> int | None:
        """The dissection, where there is one network; of several, each has its current one."""
        return None if self.several else self.dissection

    def columns(self, columns: Mapping[str, str]) -> dict[str, str]:
        """Columns of a table: the network's name only where there are several."""
        return {key: told for key, told in columns.items() if self.several or key != "network"}

    def footer(self, n: str, experiment: int | None = None) -> str:
        """Data set, networks, recipes and n, for under a figure."""
        if not self.several:
            with db.reading(self.engine) as session:
                return experiments.footer(session, self.about, experiment, n)
        recipes = ", ".join(about.sha256[:10] for about in self.abouts)
        return f"{self.about.dataset} · {', '.join(self.networks)} · recipes {recipes} · n = {n}"

    def stored(self, kind: str | None, command: str, about: Subject | None = None) -> Progress:
        """The listener for an experiment: where nothing is to be computed, one under which nothing can be.

        Parameters
        ----------
        kind
            Kind of experiment that must be there, complete; None: any.
        command
            The command that makes it.

        Raises
        ------
        NotStoredError
            Nothing is to be computed, and there is none.
        """
        if not self.options.stored_only:
            return self.progress
        if kind is not None:
            with db.reading(self.engine) as session:
                if experiments.latest(session, about or self.about, kind) is None:
                    raise self.not_stored(command, about or self.about, classes=kind in _BY_CLASS)
        return _Refusing(command)

    def not_stored(self, command: str, about: Subject, *, classes: bool = True) -> AndpError:
        """What to tell of an experiment that is not there: the command, unless that would be refused too.

        `classes`: it is about the classes of the network.
        """
        if classes:
            with db.reading(self.engine) as session:
                if not session.get_one(Network, about.network_id).classes:
                    return InputError(f"'{about.network}' has no class names, so it cannot be computed")
        return NotStoredError(f"it has not been computed yet; run: {command}")


Builder = Callable[[Work], Sequence[Block]]


def section(work: Work, key: str, build: Builder) -> Section:
    """A section; what keeps it from being made is told in its place."""
    texts = _methods()[key]
    try:
        blocks = list(build(work))
    except Exception as error:  # noqa: BLE001 (whatever it is, the other sections are to be written)
        blocks = [left_out(key, error)]
    commands = [
        str(texts["command"]).format(
            network=shlex.quote(about.network), networks=shlex.join(work.networks), dissection=about.dissection_id,
            per_layer=work.options.per_layer, seed=work.options.seed,
        )
        for about in work.abouts
    ]  # fmt: skip
    told = tuple(command for command in dict.fromkeys(commands) if command)
    return Section(key, texts["title"], texts["paper"], texts["method"], blocks, told)


def missing(error: AndpError, network: str | None = None) -> Missing:
    """An error's words in the place of what it kept from being made."""
    text = str(error).strip()
    whose = f" of {network}" if network else ""
    return Missing(f"Not in this report{whose}: {text}")


def left_out(key: str, error: Exception) -> Missing:
    """What stands in the place of a section that failed.

    Raises
    ------
    DatabaseUnreachableError
        The database is out of reach, so that the others would fail too.
    AndpError
        No space is left on a disk.
    """
    if isinstance(error, AndpError):
        if isinstance(error, DatabaseUnreachableError) or output_files.out_of_space(error):
            raise error
        return missing(error)
    if output_files.out_of_space(error):
        raise InputError(
            f"no space is left on a disk ({logs.mask(str(error))}); free some, and run this again"
        ) from error
    log.info("the section %s failed", key, exc_info=error)
    first = str(error).strip().partition("\n")[0]
    told = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return Missing(f"Not in this report: it could not be made ({logs.mask(told)}); run again with -v for the traceback")


_BY_CLASS = ("last_layer", "unlearning", "sweep", "feature_ablation")


@cache
def _methods() -> dict[str, dict[str, Any]]:
    return tomllib.loads(resource("report/methods.toml").read_text("utf-8"))
