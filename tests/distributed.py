"""Workers without a broker: messages lie in a list, and a test hands them out in whatever order, twice, late or never."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from and_platform import db
from and_platform.config import settings
from and_platform.services.dissect import Options
from and_platform.services.distribution import handling, ledger, runs, workers
from and_platform.services.distribution.ledger import Me, Unit
from and_platform.services.distribution.models import Models


class Message(NamedTuple):
    """What a broker holds: `what` is unit or advance."""

    what: str
    queue: str
    id: int


class Post:
    """A broker: a list."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.most = 0

    def unit(self, queue: str, unit_id: int) -> None:
        self.messages.append(Message("unit", queue, unit_id))

    def advance(self, run_id: int) -> None:
        self.messages.append(Message("advance", "db", run_id))

    def depths(self) -> dict[str, int]:
        return dict(Counter(message.queue for message in self.messages))


class Workshop:
    """One worker, its broker, and what it has done. It is its own witness."""

    def __init__(self, engine: sa.Engine, models: int = 4) -> None:
        self.engine = engine
        self.post = Post()
        self.loaded: list[str] = []
        self.models = Models(models, lambda name, _seconds: self.loaded.append(name))
        self.worker_id = workers.enlist(engine, "test@here", ["cpu", "gpu", "llm", "db"], 1, "cpu")
        self.station = handling.Station(engine, self.models, self.post, Me(self.worker_id, set()))
        self.done_keys: Counter[str] = Counter()
        self.done_steps: Counter[str] = Counter()
        self.failures: list[tuple[str, str]] = []
        self.retries = 0

    @contextmanager
    def unit(self, unit: Unit) -> Iterator[None]:
        yield

    def done(self, unit: Unit, seconds: float, counts: Mapping[str, Any]) -> None:
        self.done_keys[unit.key] += 1
        self.done_steps[unit.step] += 1

    def failed(self, unit: Unit, kind: str, error: Exception | None) -> None:
        self.failures.append((unit.step, kind))

    def retried(self, unit: Unit) -> None:
        self.retries += 1

    def start(self, network: str = "tiny", **options: Any) -> int:
        """Open a run and send its first unit; returns its id."""
        run_id, _ = runs.start(self.engine, network, Options.from_mapping({"dataset": "tones", **options}))
        ledger.top_up(self.engine, run_id, self.post, window=settings().queue_window)
        return run_id

    def deliver(self, message: Message) -> None:
        """Do what a worker does with a message."""
        if message.what == "advance":
            handling.advance(self.station, message.id)
        else:
            handling.unit(self.station, message.id, self)

    def next(self, rng: random.Random | None = None) -> Message:
        """Take a message from the broker: the oldest, or any."""
        return self.post.messages.pop(rng.randrange(len(self.post.messages)) if rng else 0)

    def sweep(self) -> ledger.Swept | None:
        """What every worker does now and then."""
        workers.beat(self.engine, self.worker_id)
        return ledger.sweep(self.engine, self.post, self.post.depths, window=settings().queue_window)

    def later(self, seconds: float = 3600) -> None:
        """Let time pass: all that was written down happened that much earlier."""
        by = {"by": seconds}
        with db.transaction(self.engine) as session:
            for table, columns in (
                ("work_units", ("not_before", "sent_at", "started_at", "finished_at")),
                ("runs", ("started_at", "finished_at")),
                ("run_steps", ("planned_at", "finished_at")),
                ("workers", ("seen_at",)),
            ):
                moved = ", ".join(f"{column} = {column} - make_interval(secs => :by)" for column in columns)
                session.execute(sa.text(f"UPDATE {table} SET {moved}"), by)
            session.execute(sa.text("UPDATE workers SET seen_at = now() WHERE id = :me"), {"me": self.worker_id})

    def outcome(self, run_id: int) -> dict[str, Any]:
        with db.reading(self.engine) as session:
            return runs.outcome(session, run_id)

    def work(self, *run_ids: int, rng: random.Random | None = None, twice: float = 0.0, lost: float = 0.0) -> None:
        """Deliver messages until these runs are over, in any order with `rng`; some twice, some never."""
        quiet = 0
        while any(self.outcome(run_id)["outcome"] == "running" for run_id in run_ids):
            if not self.post.messages:
                quiet += 1
                assert quiet < 200, f"nothing happens any more: {[self.outcome(run_id) for run_id in run_ids]}"
                self.later()
                self.sweep()
                continue
            quiet = 0
            message = self.next(rng)
            if rng and rng.random() < lost:
                continue
            self.deliver(message)
            if rng and rng.random() < twice:
                self.post.messages.append(message)

    def dissect(self, network: str = "tiny", **options: Any) -> dict[str, Any]:
        """A run from its beginning to its end; returns how it ended."""
        run_id = self.start(network, **options)
        self.work(run_id)
        return {"run": run_id, **self.outcome(run_id)}


# ---------------------------------------------------------------------- what is in a database, whatever the ids are

_NEURON = (
    "l.name AS layer, n.unit FROM {table} x JOIN neurons n ON n.id = x.neuron_id JOIN layers l ON l.id = n.layer_id"
)
_OF_RECIPE = " JOIN recipes r ON r.id = x.recipe_id"

CONTENT = {
    "members": "SELECT p.sha256, m.position, c.path FROM probing_set_clips m JOIN clips c ON c.id = m.clip_id"
    " JOIN probing_sets p ON p.id = m.probing_set_id WHERE EXISTS (SELECT FROM recordings r WHERE r.probing_set_id = p.id)",
    "recorded": "SELECT r.sha256, l.name, x.pooling FROM recorded_layers x JOIN layers l ON l.id = x.layer_id"
    " JOIN recordings c ON c.id = x.recording_id JOIN recipes r ON r.id = c.recipe_id",
    "blocks": "SELECT count(*) FROM activation_blocks",
    "activations": f"SELECT r.sha256, x.stretch, x.values::real[] AS values, {_NEURON}"
    " JOIN recordings c ON c.id = x.recording_id JOIN recipes r ON r.id = c.recipe_id",
    "exemplars": f"SELECT r.sha256, x.side, x.positions, x.activations, {_NEURON}"
    " JOIN recordings c ON c.id = x.recording_id JOIN recipes r ON r.id = c.recipe_id",
    "neuron_statistics": f"SELECT r.sha256, x.mean, x.sd, x.min, x.max, x.sparsity, {_NEURON}"
    " JOIN recordings c ON c.id = x.recording_id JOIN recipes r ON r.id = c.recipe_id",
    "captions": "SELECT r.sha256, c.path, x.text, x.original, x.names_label, ARRAY(SELECT t.text FROM caption_sentences s"
    " JOIN texts t ON t.id = s.text_id WHERE s.caption_id = x.id ORDER BY s.ordinal) AS sentences"
    f" FROM captions x JOIN clips c ON c.id = x.clip_id{_OF_RECIPE}",
    "scorings": f"SELECT r.sha256, x.method, x.missing FROM scorings x{_OF_RECIPE}",
    "clip_concept_scores": "SELECT r.sha256, k.name, x.stretch, x.scores::real[] AS scores, x.cubed::real[] AS cubed"
    " FROM clip_concept_scores x JOIN concepts k ON k.id = x.concept_id JOIN scorings s ON s.id = x.scoring_id"
    " JOIN recipes r ON r.id = s.recipe_id",
    "clip_embeddings": "SELECT r.sha256, c.path, x.embedding::real[] AS embedding FROM clip_embeddings x"
    " JOIN clips c ON c.id = x.clip_id JOIN encoders e ON e.id = x.encoder_id JOIN recipes r ON r.id = e.recipe_id",
    "concept_matches": f"SELECT r.sha256, x.rank, k.name, x.score, {_NEURON} JOIN concepts k ON k.id = x.concept_id{_OF_RECIPE}",
    "summaries": "SELECT r.sha256, x.side, x.text, ARRAY(SELECT t.text FROM summary_points s JOIN texts t ON t.id = s.text_id"
    f" WHERE s.summary_id = x.id ORDER BY s.ordinal) AS points, {_NEURON}{_OF_RECIPE}",
    "calibrations": f"SELECT r.sha256, x.summary, x.n_kept, x.n_dropped, x.support, {_NEURON}{_OF_RECIPE}",
    "calibrated_points": "SELECT r.sha256, l.name, n.unit, p.ordinal, p.kept, p.nearest_low_ordinal, p.support, p.cosine"
    " FROM calibrated_points p JOIN calibrations x ON x.id = p.calibration_id JOIN neurons n ON n.id = x.neuron_id"
    f" JOIN layers l ON l.id = n.layer_id{_OF_RECIPE}",
    "text_tags": "SELECT r.sha256, t.text, ARRAY(SELECT k.term || '/' || k.part_of_speech FROM unnest(x.terms)"
    " WITH ORDINALITY AS o (id, place) JOIN terms k ON k.id = o.id ORDER BY o.place) AS terms"
    f" FROM text_tags x JOIN texts t ON t.id = x.text_id{_OF_RECIPE}",
    "term_verdicts": "SELECT r.sha256, k.term, x.accepted, x.score, x.reason FROM term_verdicts x"
    f" JOIN terms k ON k.id = x.term_id{_OF_RECIPE}",
    "neuron_terms": f"SELECT r.sha256, k.term, k.part_of_speech, x.occurrences, x.is_open_concept, {_NEURON}"
    f" JOIN terms k ON k.id = x.term_id{_OF_RECIPE}",
    "summary_embeddings": "SELECT r.sha256, l.name, n.unit, x.embedding::real[] AS embedding FROM summary_embeddings x"
    " JOIN calibrations c ON c.id = x.calibration_id JOIN neurons n ON n.id = c.neuron_id JOIN layers l ON l.id = n.layer_id"
    " JOIN recipes r ON r.id = c.recipe_id",
    "text_embeddings": "SELECT r.sha256, t.text, x.truncated, x.embedding::real[] AS embedding FROM text_embeddings x"
    " JOIN texts t ON t.id = x.text_id JOIN encoders e ON e.id = x.encoder_id JOIN recipes r ON r.id = e.recipe_id",
    "answers": f"SELECT r.sha256, x.prompt_sha256, x.answer, x.completion_tokens FROM answers x{_OF_RECIPE}",
    "finished_layers": f"SELECT r.sha256, l.name FROM finished_layers x JOIN layers l ON l.id = x.layer_id{_OF_RECIPE}",
    "recordings": f"SELECT r.sha256 FROM recordings x{_OF_RECIPE}",
    "dissections": "SELECT d.status, d.top_k, d.methods, d.completed_at IS NOT NULL, ARRAY(SELECT k.stage || r.sha256 ||"
    " k.speaks FROM dissection_recipes k JOIN recipes r ON r.id = k.recipe_id WHERE k.dissection_id = d.id ORDER BY 1),"
    " ARRAY(SELECT l.name FROM dissected_layers y JOIN layers l ON l.id = y.layer_id WHERE y.dissection_id = d.id"
    " AND y.completed_at IS NOT NULL ORDER BY 1) AS layers FROM dissections d",
    # Prompts without an answer are kept apart (stage ask) for those that read answers only.
    "failures": "SELECT x.stage, CASE WHEN x.scope LIKE 'recipe:%' THEN (SELECT sha256 FROM recipes r"
    " WHERE r.id = CAST(substr(x.scope, 8) AS bigint)) ELSE x.scope END AS scope, x.unit, c.path, x.reason"
    " FROM failures x LEFT JOIN clips c ON c.id = x.clip_id WHERE x.resolved_at IS NULL AND x.stage <> 'ask'",
}  # fmt: skip


def content(engine: sa.Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All results of a database, named by what they are of, in one order."""
    found = {}
    with db.reading(engine) as session:
        for table, query in CONTENT.items():
            rows = session.execute(sa.text(query.replace("{table}", table)))
            found[table] = sorted((tuple(row) for row in rows), key=_order)
    return found


def _order(row: tuple[Any, ...]) -> str:
    """What a row is of: all but its floats, whose last digits may differ."""
    return repr([value for value in row if not _floats(value)])


def _floats(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, list) and any(isinstance(item, float) for item in value))


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, leaving_out: tuple[str, ...] = ()) -> None:
    """Row for row the same; floats to the last digits, since an encoder rounds by what else is in a batch."""
    for table, rows in expected.items():
        if table in leaving_out:
            continue
        ours = found[table]
        assert len(ours) == len(rows), f"{table}: {len(ours)} rows, not {len(rows)}"
        for mine, theirs in zip(ours, rows, strict=True):
            for one, other in zip(mine, theirs, strict=True):
                if _floats(one) or _floats(other):
                    assert np.allclose(one, other, rtol=1e-4, atol=1e-5), (table, mine[:4], theirs[:4])
                else:
                    assert one == other, (table, mine, theirs)
