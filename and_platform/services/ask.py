"""Asking: one neuron, neurons for a concept, search by text, SQL."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, dataclass
from typing import Any

import psycopg
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector import Vector
from sqlalchemy.orm import Session

from and_platform import db, queries
from and_platform.core.names import normalise
from and_platform.errors import AndpError, DatabaseError, IncompleteError, InputError, NotFoundError, QueryError
from and_platform.services import networks

STRATEGIES = ("open", "closed_db", "closed_tab", "closed_icl", "meaning")
WORDS = ("any", "all", "phrase")

_NEURON = re.compile(r"^(?P<layer>[^#]+)#(?P<unit>\d+)$")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class NeuronReport:
    """Everything known of one neuron in one dissection. See the views of the same names for the columns."""

    description: dict[str, Any]
    exemplars: Rows
    points: Rows
    matches: Rows
    terms: Rows

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_dissection(session: Session, network: str | None, dissection: int | None = None) -> int:
    """The dissection that a question goes to: the one named, else the network's current one.

    Raises
    ------
    NotFoundError
        There is none, no such network, or the dissection named is of another network.
    """
    if network is not None:
        networks.find(session, network)
    if dissection is not None:
        dissected = session.scalar(
            sa.text("SELECT n.name FROM dissections d JOIN networks n ON n.id = d.network_id WHERE d.id = :id"),
            {"id": dissection},
        )
        if dissected is None:
            raise NotFoundError(f"no dissection {dissection}; see: andp dissections list")
        if network not in (None, dissected):
            raise NotFoundError(f"dissection {dissection} is of '{dissected}', not of '{network}'")
        return dissection
    current = queries.current_dissections(session, network=network)
    if not current:
        whose = f"of '{network}' " if network else ""
        raise NotFoundError(f"no complete dissection {whose}yet; run: andp dissect {network or 'NETWORK'}")
    return int(current[0]["dissection_id"])


def neuron(
    engine: sa.Engine, network: str, name: str, *, dissection: int | None = None, exemplars: int | None = None
) -> NeuronReport:
    """Everything known of a neuron.

    Parameters
    ----------
    name
        `LAYER#UNIT`, e.g. `b03.ff_in#17`.
    exemplars
        Clips a side to show; default: the dissection's K.

    Raises
    ------
    InputError
        The name is not of that form.
    NotFoundError
        There is no such neuron in the dissection.
    """
    parts = _NEURON.match(name)
    if parts is None:
        raise InputError(f"'{name}' is no neuron; write LAYER#UNIT, e.g. b03.ff_in#17")
    with db.reading(engine) as session:
        chosen = choose_dissection(session, network, dissection)
        found = queries.describe_neuron(session, dissection=chosen, layer=parts["layer"], unit=int(parts["unit"]))
        if found is None or found["network"] != network:
            layers = session.scalars(
                sa.text(
                    "SELECT l.name || '#0…' || l.n_units - 1 FROM dissected_layers d JOIN layers l ON l.id = d.layer_id"
                    " WHERE d.dissection_id = :id ORDER BY l.position"
                ),
                {"id": chosen},
            ).all()
            raise NotFoundError(
                f"no neuron '{name}' of '{network}' in dissection {chosen}; there are: {', '.join(layers)}"
            )
        n = exemplars or session.scalars(sa.text("SELECT top_k FROM dissections WHERE id = :id"), {"id": chosen}).one()
        return NeuronReport(
            found,
            queries.neuron_exemplars(
                session, dissection=chosen, recording=found["recording_id"], neuron=found["neuron_id"], n=n
            ),
            queries.neuron_points(session, calibration=found["calibration_id"]) if found["calibration_id"] else [],
            queries.neuron_matches(session, dissection=chosen, neuron=found["neuron_id"], n=3),
            queries.neuron_terms_of(session, dissection=chosen, neuron=found["neuron_id"]),
        )


def neurons(
    engine: sa.Engine,
    concept: str,
    *,
    strategy: str = "open",
    network: str | None = None,
    dissection: int | None = None,
    words: str = "any",
    top: int = 3,
    layer: str | None = None,
    limit: int | None = 20,
) -> Rows:
    """The neurons that respond to a concept, best first.

    Parameters
    ----------
    strategy
        `open`: the summary's terms contain the concept's words; `closed_db`, `closed_tab`, `closed_icl`: the concept is
        among the `top` of the neuron; `meaning`: nearest summaries by vector.
    words
        For `open`: `any` or `all` of the concept's content words, or the `phrase`.
    layer
        Pattern on layer names, e.g. `b03.*`.

    Raises
    ------
    InputError
        The strategy is unknown, or the concept is not in the concept set that was matched.
    """
    for what, value, known in (("strategy", strategy, STRATEGIES), ("value of words", words, WORDS)):
        if value not in known:
            raise InputError(f"no {what} '{value}'; choose from: {', '.join(known)}")
    _check_limit(limit)
    if not concept.strip():
        raise InputError("the concept is empty; give a word or phrase")
    if strategy == "meaning":
        _embed_question(engine, concept, network, dissection)
    with db.reading(engine) as session:
        choose_dissection(session, network, dissection)
        if strategy.startswith("closed_"):
            concept = normalise(concept)
            _check_concept(session, concept, strategy.removeprefix("closed_"), network, dissection)
        return queries.neurons_for_concept(
            session, concept=concept, strategy=strategy, network=network, dissection=dissection, words=words, top=top,
            layer=_like(layer), n=limit,
        )  # fmt: skip


def search(
    engine: sa.Engine, text: str, *, network: str | None = None, dissection: int | None = None, limit: int = 10
) -> Rows:
    """Neurons whose summaries are near a text in meaning or contain its words, fused by reciprocal rank."""
    _check_limit(limit)
    if not text.strip():
        raise InputError("there is nothing to search for; give a word or phrase")
    encoder_id, vector = _embed_question(engine, text, network, dissection)
    with db.reading(engine) as session:
        choose_dissection(session, network, dissection)
        return queries.search_summaries(
            session,
            text=text,
            encoder=encoder_id,
            vector=Vector(vector),
            network=network,
            dissection=dissection,
            n=limit,
        )


def sql(
    engine: sa.Engine, query: str, *, write: bool = False, timeout: float = 60.0, limit: int | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and rows of a query, in a read-only transaction unless `write`.

    Several statements, with ';' between them, are for `write` alone; the rows are then those of the last one. A statement
    without rows gives how many it affected, or what it did.

    It connects as a role that only reads, where there is one: the embedded server's, or that of `ANDP_READER_URL`. Else
    it is the engine's user in a read-only transaction, which protects tables only: where the roles of `andp db roles` are
    there, a superuser's queries run as `andp_reader`, and could take his own role back.

    Parameters
    ----------
    timeout
        Seconds after which the server cancels it; 0: never.
    limit
        The most rows to fetch.

    Raises
    ------
    QueryError
        The server's message, where it refuses the query.
    """
    if timeout < 0:
        raise InputError(f"the timeout is {timeout:g} s; give 0 for none, or more")
    reader = None if write else db.reader_engine(engine)
    setting = "ANDP_DATABASE_URL" if reader is None else "ANDP_READER_URL"
    with db.translated(setting=setting), (reader or engine).connect() as pooled:
        connection = pooled.connection.driver_connection
        assert connection is not None
        try:
            connection.read_only = not write
            return _answer(connection, query, write, timeout, limit, as_reader=reader is not None)
        except psycopg.Error as exc:
            refused = _query_error(exc, timeout)
            if refused is None:
                raise
            raise refused from exc
        finally:
            # Closed and not pooled: read-only is a mode of the connection, and a query may leave it in any state. Behind
            # a pooler the server's session goes on: one message, so that it is this session that keeps nothing.
            with contextlib.suppress(psycopg.Error):  # lost with all it held
                connection.execute("ROLLBACK; SELECT pg_advisory_unlock_all(); DEALLOCATE ALL", prepare=False)
            pooled.invalidate()


_LOCK_TIMEOUT_S = 10


def _answer(
    connection: psycopg.Connection[Any], query: str, write: bool, timeout: float, limit: int | None, *, as_reader: bool
) -> tuple[list[str], list[tuple[Any, ...]]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('statement_timeout', %s, true), set_config('TimeZone', 'UTC', true)",
            (str(int(timeout * 1000)),),
        )
        if write:
            cursor.execute(query, prepare=False)
            while cursor.nextset():
                pass
            found = _rows_of(cursor, limit)
            connection.commit()
            return found
        cursor.execute("SELECT set_config('lock_timeout', %s, true)", (f"{_LOCK_TIMEOUT_S}s",))
        if not as_reader and cursor.execute(_TOO_MUCH).fetchone() == (True,):
            cursor.execute("SET LOCAL ROLE andp_reader")
    # A pipeline takes one statement at a time: none can end the read-only transaction and go on after it.
    with connection.cursor() as cursor:
        with connection.pipeline():
            cursor.execute(query, prepare=False)
        return _rows_of(cursor, limit)


# Classes of SQLSTATE that psycopg counts as operational, and that are about the query: limits of the server on one
# statement, objects that are not in the state for it, its files.
_ABOUT_THE_QUERY = ("53400", "54", "55", "57000", "58P")


def _query_error(exc: psycopg.Error, timeout: float) -> AndpError | None:
    """What the server, or the driver, said of a query; None: it is not about the query, but about the server."""
    match exc:
        case psycopg.errors.ReadOnlySqlTransaction():
            return QueryError("that query writes; say so with --write (in Python: write=True)")
        case psycopg.errors.QueryCanceled():
            if "statement timeout" not in str(exc):
                return DatabaseError("the query was cancelled on the server; run it again")
            return QueryError(f"cancelled after {timeout:g} s; ask for less, or raise --timeout")
        case psycopg.errors.ActiveSqlTransaction():
            return QueryError(f"{exc.diag.message_primary}; use psql for it: andp db shell -c '…'")
        case psycopg.errors.LockNotAvailable():
            return DatabaseError(f"{exc.diag.message_primary}: another command holds it; run the query again later")
        case psycopg.OperationalError() | psycopg.InterfaceError():
            if exc.sqlstate is None:
                return QueryError(_refusal(exc)) if "in COPY" in str(exc) else _broken(exc)
            if exc.sqlstate.startswith(_ABOUT_THE_QUERY):
                return QueryError(_refusal(exc))
            return _broken(exc) if db.is_lost(exc.sqlstate) else None
    return QueryError(_refusal(exc))


def _broken(exc: psycopg.Error) -> DatabaseError:
    return DatabaseError(f"the connection broke: {str(exc).strip().partition(chr(10))[0]}")


# Whether this user could do more in a read-only transaction than read our tables, and might as well be `andp_reader`.
_TOO_MUCH = """
SELECT (u.rolsuper OR pg_has_role(u.oid, 'pg_execute_server_program', 'MEMBER')
        OR pg_has_role(u.oid, 'pg_write_server_files', 'MEMBER') OR pg_has_role(u.oid, 'pg_read_server_files', 'MEMBER')
        OR pg_has_role(u.oid, 'pg_signal_backend', 'MEMBER'))
       AND pg_has_role(u.oid, r.oid, 'MEMBER') AND has_table_privilege(r.oid, to_regclass('networks'), 'SELECT')
FROM pg_roles u, pg_roles r
WHERE u.rolname = current_user AND r.rolname = 'andp_reader'
"""


def _rows_of(cursor: psycopg.Cursor[Any], limit: int | None) -> tuple[list[str], list[tuple[Any, ...]]]:
    if cursor.description is not None:
        rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit)
        return [column.name for column in cursor.description], list(rows)
    if not cursor.statusmessage:
        raise QueryError("the query is empty; write one statement of SQL")
    if cursor.rowcount < 0:
        return ["done"], [(cursor.statusmessage,)]
    return ["rows_affected"], [(cursor.rowcount,)]


def _refusal(exc: psycopg.Error) -> str:
    """The server's words, or the driver's, and what to do about it."""
    told = exc.diag.message_primary or str(exc)
    if "multiple commands" in told:
        return "that is more than one statement; give one at a time (several only with --write)"
    if "COPY" in told and exc.sqlstate is None:
        return "COPY to or from the client does not work here; use --csv, or psql: andp db shell -c '…'"
    if isinstance(exc, psycopg.errors.InsufficientPrivilege):
        return f"{told}; 'andp sql' connects as a user who only reads, with --write as the user of the database"
    return f"{told} ({exc.diag.message_hint})" if exc.diag.message_hint else told


def activations(
    engine: sa.Engine, network: str, layer: str, *, dataset: str | None = None
) -> tuple[NDArray[Any], list[str], list[str | None]]:
    """Recorded activations of a layer, float16 [units, clips], with the clips' paths and labels."""
    from and_platform.services.activations import read_layer

    with db.reading(engine) as session:
        net = networks.find(session, network)
        rows = {row.name: row for row in networks.layers(session, net)}
        if layer not in rows:
            raise NotFoundError(f"'{network}' has no layer '{layer}'; see: andp networks show {network}")
        recording = session.execute(
            sa.text(
                "SELECT r.id, r.probing_set_id, p.n_clips FROM recordings r JOIN probing_sets p ON p.id = r.probing_set_id"
                " JOIN datasets d ON d.id = p.dataset_id"
                " JOIN recorded_layers l ON l.recording_id = r.id AND l.layer_id = :layer"
                " WHERE r.network_id = :network AND (CAST(:dataset AS text) IS NULL OR d.name = :dataset)"
                " ORDER BY r.id DESC LIMIT 1"
            ),
            {"network": net.id, "dataset": dataset, "layer": rows[layer].id},
        ).one_or_none()
        if recording is None:
            raise IncompleteError(f"layer {layer} of '{network}' has not been recorded; run: andp dissect {network}")
        values = read_layer(session, recording.id, rows[layer], recording.n_clips)
        clips = queries.probing_clips(session, probing_set=recording.probing_set_id)
        return values, [clip["path"] for clip in clips], [clip["label"] for clip in clips]


def _embed_question(engine: sa.Engine, text: str, network: str | None, dissection: int | None) -> tuple[int, Any]:
    """The vector of a question, by the encoder of the summaries it is compared with; kept for SQL to find."""
    from and_platform.backends import registry
    from and_platform.services import embed
    from and_platform.services.texts import text_ids

    with db.reading(engine) as session:
        chosen = choose_dissection(session, network, dissection)
        spec = session.scalars(
            sa.text("SELECT config ->> 'sentence_encoder' FROM dissections WHERE id = :id"), {"id": chosen}
        ).one()
    encoder = registry.create("encoder", spec or "minilm")
    with db.transaction(engine) as session:
        ids = text_ids(session, [text])
    encoder_id = embed.embed_texts(engine, encoder, list(ids.values()))
    with db.reading(engine) as session:
        return encoder_id, embed.text_vectors(session, encoder_id, list(ids.values()))[0]


def _check_concept(session: Session, concept: str, method: str, network: str | None, dissection: int | None) -> None:
    """Tell apart a concept that no neuron has from one that was never asked about, and from a method never computed."""
    asked = (
        [dissection]
        if dissection
        else [r["dissection_id"] for r in queries.current_dissections(session, network=network)]
    )
    rows = session.execute(
        sa.text(
            "SELECT s.name AS concept_set,"
            " EXISTS (SELECT FROM concepts c WHERE c.concept_set_id = s.id AND c.name = :concept) AS known"
            " FROM dissections d JOIN concept_sets s ON s.id = d.concept_set_id"
            " WHERE d.id = ANY (:ids) AND :method = ANY (d.methods) ORDER BY d.id DESC"
        ),
        {"method": method, "concept": concept, "ids": asked},
    ).all()
    if not rows:
        which = ", ".join(map(str, sorted(asked)))
        raise IncompleteError(
            f"dissection {which} was made without the method {method}; give it a model and dissect again"
        )
    if not any(row.known for row in rows):
        sets = list(dict.fromkeys(row.concept_set for row in rows))
        names = "', '".join(sets)
        raise InputError(
            f"'{concept}' is not in the concept set '{names}' that neurons were matched with; "
            f"see: andp concepts show {sets[0]}, or ask with --strategy open or meaning"
        )


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}; ask for at least 1 neuron")


def _like(glob: str | None) -> str | None:
    """A shell pattern as a LIKE pattern."""
    if glob is None:
        return None
    escaped = re.sub(r"([%_\\])", r"\\\1", glob)
    return escaped.replace("*", "%").replace("?", "_")
