"""The platform in Python: one object, made for notebooks.

    import and_platform
    andp = and_platform.open()
    andp.dissect("sample-ast")
    andp.neurons("water")

Rows come as pandas DataFrames. Everything here is also a command of `andp`; both call the same services.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from and_platform import db
from and_platform.config import Settings
from and_platform.errors import InputError
from and_platform.services import ask, dissections, provenance
from and_platform.services.ask import NeuronReport
from and_platform.services.progress import SILENT, Progress

if TYPE_CHECKING:
    import pandas as pd

    from and_platform.schema import Network
    from and_platform.services.dissect import DissectReport
    from and_platform.services.ingest import IngestReport


class NeuronView:
    """A neuron, for notebooks: `description` is a dict, the rest are DataFrames.

    Attributes
    ----------
    description
        The neuron's row of the view `neuron_descriptions`, with its statistics.
    exemplars
        Its most and least active clips, with their captions.
    points
        The points of its summary, kept or dropped, and by which low point.
    matches
        Its best closed-set concepts by method and function.
    terms
        The terms of its calibrated summary, with the verdicts on adjectives.
    """

    def __init__(self, report: NeuronReport) -> None:
        self.description = report.description
        self.exemplars = _frame(
            report.exemplars, ("side", "rank", "label", "path", "activation", "caption", "names_label")
        )
        self.points = _frame(report.points, ("point", "kept", "support", "nearest_low_point", "cosine"))
        self.matches = _frame(report.matches, ("method", "similarity", "speaks", "rank", "concept", "score"))
        self.terms = _frame(
            report.terms,
            ("term", "part_of_speech", "occurrences", "is_open_concept", "verdict_score", "verdict_reason"),
        )

    def __repr__(self) -> str:
        told = self.description
        summary = (told["calibrated_summary"] or "no summary").replace("\n", " ")
        return f"<{told['network']} {told['neuron']}: {told['closed_db'] or 'no concept'}; {summary}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from html import escape

        parts = [f"<p><b>{escape(repr(self)[1:-1])}</b></p>"]
        for title, frame in (("exemplars", self.exemplars), ("points", self.points), ("concepts", self.matches)):
            parts.append(f"<p>{title}</p>{frame.to_html(index=False)}")
        return "".join(parts)


class Platform:
    """A database and what can be done with it. Made by `and_platform.open`.

    Parameters
    ----------
    engine
        Engine of a database with the schema.
    progress
        Listens to long work; default: nobody.
    """

    def __init__(self, engine: sa.Engine, progress: Progress = SILENT) -> None:
        self.engine = engine
        self.progress = progress

    def __enter__(self) -> Platform:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Platform on {db.shown(self.engine.url)}>"

    def close(self) -> None:
        """Close the connections, which platforms on the same database share. The embedded server keeps running."""
        self.engine.dispose()

    # ------------------------------------------------------------------ filling

    def ingest(
        self,
        source: str | Path,
        *,
        kind: str | None = None,
        name: str | None = None,
        allow_outside: bool = False,
        **options: Any,
    ) -> IngestReport:
        """Bring a data set in, or up to date.

        Parameters
        ----------
        source
            A folder whose subfolders are labels, a manifest (CSV, JSONL, Parquet), the folder of a published data set
            (with `kind`), or "sample".
        kind
            folder, manifest, esc50, urbansound8k, gtzan; default: by what `source` is.
        name
            Name of the data set; default: the folder's.
        allow_outside
            Follow links that lead out of the folder.
        options
            `processes`, `prune`, as of `andp ingest`.

        Returns
        -------
        IngestReport
            Counts, failures and duplicates.
        """
        from and_platform.backends.datasets import READERS, Source
        from and_platform.services.ingest import ingest

        if kind is not None and kind not in READERS:
            raise InputError(f"no kind of data set '{kind}'; choose from: {', '.join(sorted(READERS))}")

        if source == "sample" and kind in (None, "sample"):
            made = Source.sample()
        else:
            path = Path(source).expanduser()
            made = Source(kind or ("folder" if path.is_dir() else "manifest"), path, allow_outside=allow_outside)
        with provenance.run(
            self.engine, f"ingest {made.kind}", {"source": str(source), "name": name, **options}
        ) as run:
            return ingest(self.engine, made, name=name, progress=self.progress, run=run, **options)

    def add_network(self, name: str, location: str | Path, **options: Any) -> Network:
        """Add a network: a `transformers` directory or hub id, `FILE.py:factory` or `module:factory`.

        Options are `trained_on` and `held_out_fold`, as of `andp networks add`.
        """
        from and_platform.services import networks

        with provenance.run(self.engine, "networks add", {"name": name, "location": str(location), **options}):
            return networks.add(self.engine, name, str(location), **options)

    def dissect(self, network: str, *, profile: str | None = None, **options: Any) -> DissectReport:
        """Find out what each neuron of a network responds to.

        `profile` is the name of a set of models ("paper"; see `andp profiles list`); options go before its own. They are
        the fields of `and_platform.services.dissect.Options`: `dataset`, `concepts`, `layers`, `top_k`, `threshold`,
        `llm` … What is there already is reused.
        """
        from and_platform.services import profiles, samples
        from and_platform.services.dissect import dissect

        settled = profiles.settle(profiles.load(profile) if profile else None, options)
        samples.ensure(self.engine, network, settled.dataset, self.progress)
        with provenance.run(self.engine, "dissect", {"network": network, "profile": profile, **options}) as run:
            return dissect(self.engine, network, settled, progress=self.progress, run=run)

    # ------------------------------------------------------------------ the paper's experiments

    def last_layer(self, network: str, **options: Any) -> pd.DataFrame:
        """Do the concepts found for the last layer name its classes? Tables 2 and 7, in long form with intervals.

        Options are those of `and_platform.services.last_layer.evaluate`.
        """
        from and_platform.services import last_layer

        return _frame(last_layer.evaluate(self.engine, network, progress=self.progress, **options).rows, ())

    def explanations(self, network: str, **options: Any) -> pd.DataFrame:
        """How well descriptions tell on which clips neurons are active, by layer; `permutations` says how many.

        The scores of each neuron are in the view `neuron_descriptions`.
        """
        from and_platform.services import explanations

        made = explanations.score(self.engine, network, progress=self.progress, **options)
        return _frame(
            explanations.by_layer(
                self.engine, network, dissection=made.dissection_id, layers=options.get("layers"), experiment=made.experiment_id
            ),
            (),
        )  # fmt: skip

    def unlearn(self, network: str, concept: str | None = None, **options: Any) -> pd.DataFrame:
        """Ablate the neurons of a concept, or with `each_class=True` of each class in turn, and measure on held-out clips.

        One row per ablation: neurons and parameters removed, dA, dR and gap = dR - dA, accuracies. Options are those of
        `and_platform.services.unlearning.runs.run`.
        """
        from and_platform.services.unlearning import runs, tables

        with provenance.run(self.engine, "unlearn run", {"network": network, "concept": concept, **options}) as run:
            made = runs.run(self.engine, network, concept=concept, progress=self.progress, **options)
            run.counts = {"measured": made.measured, "reused": made.reused}
        return _frame(tables.overview(self.engine, made.ablations), ())

    def interpretability(self, networks: str | Sequence[str], **options: Any) -> pd.DataFrame:
        """Share of uninterpretable neurons by block and kind of layer, for all tau and K; the captions are clustered first.

        Options are those of `and_platform.services.interpretability.blocks`.
        """
        from and_platform.services import interpretability

        chosen = [networks] if isinstance(networks, str) else list(networks)
        if "clustering" not in options:
            made = interpretability.cluster(self.engine, chosen[0], progress=self.progress)
            options["clustering"] = made.id
        return _frame(interpretability.blocks(self.engine, chosen, **options), ())

    def report(self, network: str, folder: str | Path, *, force: bool = False, **options: Any) -> Path:
        """Write the report of a network to a folder; returns the page. Experiments that are missing are run first.

        Options are the fields of `and_platform.services.report.Options`: `skip`, `quick`, `stored_only`, `neurons` …
        """
        from and_platform.services import report

        chosen = report.Options(**options)
        return report.network(self.engine, network, Path(folder), chosen, force=force, progress=self.progress).page

    # ------------------------------------------------------------------ asking

    def neuron(
        self, network: str, name: str, *, dissection: int | None = None, exemplars: int | None = None
    ) -> NeuronView:
        """Everything known of a neuron, named LAYER#UNIT ("b03.ff_in#17")."""
        return NeuronView(ask.neuron(self.engine, network, name, dissection=dissection, exemplars=exemplars))

    def neurons(self, concept: str, **options: Any) -> pd.DataFrame:
        """The neurons that respond to a concept, best first, and why each.

        Options are those of `and_platform.services.ask.neurons`: `strategy`, `network`, `layer`, `words`, `limit` …
        """
        return _frame(
            ask.neurons(self.engine, concept, **options),
            ("neuron", "network", "layer", "block", "unit", "rank", "score", "why", "dissection_id"),
        )

    def search(
        self, text: str, *, network: str | None = None, dissection: int | None = None, limit: int = 10
    ) -> pd.DataFrame:
        """Neurons whose summaries are near a text in meaning or contain its words."""
        return _frame(
            ask.search(self.engine, text, network=network, dissection=dissection, limit=limit),
            ("neuron", "network", "cosine", "in_text", "calibrated_summary", "score", "dissection_id"),
        )

    def dissections(self) -> pd.DataFrame:
        """One row per dissection."""
        return _frame(
            dissections.overview(self.engine), ("id", "network", "dataset", "concept_set", "status", "current")
        )

    def sql(self, query: str, *, write: bool = False, timeout: float = 60.0) -> pd.DataFrame:
        """The answer to a query, in a read-only transaction unless `write`."""
        import pandas as pd

        columns, rows = ask.sql(self.engine, query, write=write, timeout=timeout)
        return pd.DataFrame.from_records(rows, columns=columns)

    def activations(
        self, network: str, layer: str, *, dataset: str | None = None
    ) -> tuple[Any, list[str], list[str | None]]:
        """Recorded activations of a layer.

        Returns
        -------
        values : float16 array [units, clips]
        paths : list of str
            The clips' paths, in order of the columns.
        labels : list of str or None
            The clips' main labels.
        """
        return ask.activations(self.engine, network, layer, dataset=dataset)


def open(
    url: str | None = None,
    *,
    reader_url: str | None = None,
    home: str | Path | None = None,
    progress: Progress = SILENT,
) -> Platform:
    """Open the database: the embedded one, or that of `url` or `ANDP_DATABASE_URL`.

    Parameters
    ----------
    url
        `postgresql://user:password@host/database`; default: the environment's, else the embedded server.
    reader_url
        The same database as a user who only reads, for `sql`; default: the environment's `ANDP_READER_URL`, which belongs
        to the environment's `ANDP_DATABASE_URL`.
    home
        Folder of the embedded database; default: `ANDP_HOME`, else the user's data folder.
    progress
        Listens to long work, e.g. `and_platform.cli.output.Bars()`.
    """
    given: dict[str, Any] = {}
    if url is not None:
        given |= {"database_url": url, "reader_url": reader_url}
    elif reader_url is not None:
        given["reader_url"] = reader_url
    if home is not None:
        given["home"] = Path(home)
    return Platform(db.connect(Settings(**given)), progress)


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a DataFrame that has its columns even where there are no rows."""
    import pandas as pd

    return pd.DataFrame.from_records(rows, columns=None if rows else list(columns))
