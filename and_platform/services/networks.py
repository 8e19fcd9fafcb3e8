"""Networks: adding, loading again, listing, dropping."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.config import load_json
from and_platform.errors import ConflictError, InputError, NotFoundError
from and_platform.resources import resource
from and_platform.schema import Dataset, Layer, Network, Recording

if TYPE_CHECKING:
    from and_platform.backends.networks.base import LoadedNetwork

SAMPLE = "sample-ast"


def add(
    engine: sa.Engine,
    name: str,
    location: str,
    *,
    trained_on: str | None = None,
    held_out_fold: int | None = None,
) -> Network:
    """Load a network once, and keep its layers, neurons and class names.

    Parameters
    ----------
    name
        What to call it.
    location
        A `transformers` audio-classification directory or hub id, a published BEATs file or a directory with one that
        the platform saved, or `FILE.py:factory` or `module:factory`. Kept so that it is found from any folder.
    trained_on, held_out_fold
        Data set it was trained on, and the fold that was left out: evaluation may use that fold only. Taken from
        `training.json` beside the weights where `andp networks train` wrote it.

    Raises
    ------
    ConflictError
        The name is taken by another network.
    InputError
        The name cannot be given.
    """
    from and_platform.backends.networks import load_network, stored_location

    check_new_name(engine, name)
    directory = Path(location).expanduser()
    location = stored_location(location)
    loaded = load_network(location)
    told = _training_record(directory / "training.json")
    return _store(
        engine, name, _source(location), location, loaded,
        trained_on or told.get("dataset"), held_out_fold if held_out_fold is not None else told.get("held_out_fold"),
        told,
    )  # fmt: skip


def check_new_name(engine: sa.Engine, name: str) -> None:
    """Refuse a name that a new network cannot have. One that is there already keeps its name, whatever it is.

    Names stand in addresses, file names and commands: they hold no slash and no control characters, and begin with no dash.

    Raises
    ------
    InputError
        The message proposes another name.
    """
    if name.isprintable() and name.strip() and not name.startswith(("-", ".")) and not set(name) & set("/\\"):
        return
    with db.reading(engine) as session:
        if session.scalar(sa.select(sa.exists().where(Network.name == name))):
            return
    kept = "".join(character for character in re.split(r"[/\\]", name)[-1] if character.isprintable())
    instead = kept.strip().lstrip("-.") or "my-network"
    raise InputError(
        f"{name!r} cannot be the name of a network: it has a slash, or does not begin like one; take '{instead}'"
    )


def _training_record(file: Path) -> dict[str, Any]:
    """What `andp networks train` wrote beside the weights; empty where it wrote nothing.

    Raises
    ------
    InputError
        The file holds something else.
    """
    if not file.is_file():
        return {}
    record = load_json(file)
    if not isinstance(record, dict) or not _is_storable(record):
        raise InputError(f"'{file}' is no record of a training; take it away, or train again")
    kinds = {"dataset": str, "held_out_fold": int, "test_accuracy": int | float}
    for key, kind in kinds.items():
        value = record.get(key)
        fits = value is None or (isinstance(value, kind) and not isinstance(value, bool))
        if not fits or (isinstance(value, int) and abs(value) >= 2**31):
            raise InputError(f"'{file}' has {ascii(value)[:80]} as {key}; mend it, or take the file away")
    return record


def _is_storable(value: Any) -> bool:
    """Whether the database takes a value as JSON: numbers that are finite, texts without NUL and lone surrogates."""
    try:
        written = json.dumps(value, allow_nan=False, ensure_ascii=False)
        written.encode()
    except (ValueError, RecursionError):
        return False
    return "\\u0000" not in written


def _source(location: str) -> str:
    """How a network is loaded: beats, transformers or factory."""
    from and_platform.backends.networks.beats import is_beats

    if is_beats(location):
        return "beats"
    return "factory" if ":" in location and not Path(location).is_dir() else "transformers"


def ensure_sample(engine: sa.Engine) -> Network:
    """The network that travels with the platform, added if it is not there yet."""
    from and_platform.backends.networks import load_network

    directory = resource(f"networks/{SAMPLE}")
    told = _training_record(directory / "training.json")
    loaded = load_network(str(directory))
    return _store(engine, SAMPLE, "sample", SAMPLE, loaded, "sample", told.get("held_out_fold"), told)


def _store(
    engine: sa.Engine,
    name: str,
    source: str,
    location: str,
    loaded: LoadedNetwork,
    trained_on: str | None,
    held_out_fold: int | None,
    extra: Mapping[str, Any],
) -> Network:
    default = {layer.name for layer in loaded.default_layers}
    if not _is_storable(list(loaded.classes or [])):
        raise InputError(f"class names of '{location}' hold characters that cannot be stored (NUL, lone surrogates)")
    with db.transaction(engine) as session:
        session.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('network:' || :name))"), {"name": name})
        there = session.scalars(sa.select(Network).where(Network.name == name)).one_or_none()
        if there is not None:
            if there.revision == loaded.revision:
                return there
            raise ConflictError(
                f"a network '{name}' with other weights is there already; choose another name, or: andp networks drop {name}"
            )
        network = Network(
            name=name, source=source, location=location, revision=loaded.revision, architecture=loaded.architecture,
            sample_rate=loaded.rate, n_parameters=loaded.n_parameters, classes=list(loaded.classes or []),
            trained_on=trained_on, held_out_fold=held_out_fold, extra=dict(extra), origin=_hub_origin(loaded),
        )  # fmt: skip
        session.add(network)
        session.flush()
        layers = [
            Layer(
                network_id=network.id, position=position, name=spec.name, module_path=spec.module_path, block=spec.block,
                kind=spec.kind, n_units=spec.n_units, pooling=spec.pooling, is_default=spec.name in default,
            )
            for position, spec in enumerate(loaded.layers)
        ]  # fmt: skip
        session.add_all(layers)
        session.flush()
        for layer in layers:
            classes = network.classes if layer.kind == "head" else []
            session.execute(
                sa.text(
                    "INSERT INTO neurons (layer_id, unit, class_name) SELECT :layer, u, (CAST(:classes AS text[]))[u + 1]"
                    " FROM generate_series(0, :n - 1) u"
                ),
                {"layer": layer.id, "n": layer.n_units, "classes": classes},
            )
        return network


def _hub_origin(loaded: LoadedNetwork) -> str | None:
    """Hub id and commit; None for what lies in a folder, which `location` tells."""
    return loaded.origin if loaded.origin and "@" in loaded.origin and not Path(loaded.origin).exists() else None


def load(network: Network) -> LoadedNetwork:
    """The module of a stored network, checked to have the weights it had when it was added.

    Raises
    ------
    ConflictError
        The weights at its location are others now.
    """
    from and_platform.backends.networks import load_network

    location = str(resource(f"networks/{SAMPLE}")) if network.source == "sample" else network.location
    loaded = load_network(location)
    if loaded.revision != network.revision:
        raise ConflictError(
            f"the weights of '{network.name}' at {location} have changed since it was added; "
            f"add them under a new name: andp networks add NEW {location}"
        )
    return loaded


def find(session: Session, name: str) -> Network:
    """The network of that name.

    Raises
    ------
    NotFoundError
        There is none; the message lists those there are.
    """
    network = session.scalars(sa.select(Network).where(Network.name == name)).one_or_none()
    if network is None:
        names = session.scalars(sa.select(Network.name).order_by(Network.name)).all()
        known = f"there are: {', '.join(names)}" if names else "add one: andp networks add NAME DIRECTORY"
        raise NotFoundError(f"no network '{name}'; {known}")
    return network


def layers(session: Session, network: Network) -> Sequence[Layer]:
    """Its layers, in order of computation."""
    return session.scalars(sa.select(Layer).where(Layer.network_id == network.id).order_by(Layer.position)).all()


def overview(engine: sa.Engine) -> list[dict[str, Any]]:
    """One row per network."""
    with db.reading(engine) as session:
        rows = session.execute(
            sa.select(
                Network.name, Network.architecture, Network.sample_rate, Network.n_parameters,
                sa.func.cardinality(Network.classes).label("classes"),
                sa.select(sa.func.count()).where(Layer.network_id == Network.id).scalar_subquery().label("layers"),
                sa.select(sa.func.sum(Layer.n_units))
                .where(Layer.network_id == Network.id, Layer.is_default)
                .scalar_subquery()
                .label("neurons"),
                Network.trained_on, Network.held_out_fold,
                Network.extra["test_accuracy"].astext.cast(sa.Float).label("test_accuracy"),
            ).order_by(Network.name)
        )  # fmt: skip
        return [dict(row._mapping) for row in rows]


def describe(engine: sa.Engine, name: str) -> list[dict[str, Any]]:
    """One row per layer of a network."""
    with db.reading(engine) as session:
        return [
            {
                "layer": layer.name, "block": layer.block, "kind": layer.kind, "units": layer.n_units,
                "pooling": layer.pooling, "default": layer.is_default, "module": layer.module_path,
            }
            for layer in layers(session, find(session, name))
        ]  # fmt: skip


def drop(engine: sa.Engine, name: str) -> None:
    """Forget a network that nothing was recorded of.

    Raises
    ------
    ConflictError
        It has recordings.
    """
    with db.transaction(engine) as session:
        network = find(session, name)
        recordings = session.scalars(sa.select(Recording.id).where(Recording.network_id == network.id)).all()
        if recordings:
            raise ConflictError(
                f"'{name}' has recordings; drop them first: "
                + "; ".join(f"andp recordings drop {recording}" for recording in recordings)
            )
        session.delete(network)


def training_items(session: Session, dataset: str) -> list[tuple[Path, str, int]]:
    """Path, label and fold of every live clip of a data set that has both."""
    from and_platform.backends import audio
    from and_platform.schema import Clip

    rows = session.execute(
        sa.select(Dataset.root, Clip.path, Clip.labels[1], Clip.fold)
        .join(Clip, Clip.dataset_id == Dataset.id)
        .where(Dataset.name == dataset, Clip.retired_at.is_(None), Clip.fold.is_not(None), Clip.labels != [])
        .order_by(Clip.id)
    ).all()
    if not rows:
        raise NotFoundError(
            f"the data set '{dataset}' has no clips with a label and a fold; see: andp datasets show {dataset}"
        )
    return [(audio.at(root, path), label, fold) for root, path, label, fold in rows]
