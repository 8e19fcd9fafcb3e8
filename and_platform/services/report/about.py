"""What a report is about: network, data set, concept set, recipes, versions, and the commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from and_platform.queries import layer_table
from and_platform.queries import report as queries
from and_platform.schema import Dissection, Network
from and_platform.services.dissect import Options as DissectOptions
from and_platform.services.experiments import Subject
from and_platform.services.report import formats
from and_platform.services.report.content import Block, Commands, Facts, Table, Text

# Options of `andp dissect` that are no options of its command line, but keys of its config file.
_FILE_ONLY = ("min_support", "captioner_options", "llm_options")
_NAMES = {"methods": "method"}


def header(session: Session, about: Subject) -> list[tuple[str, str]]:
    """The few facts under the title."""
    network = session.get_one(Network, about.network_id)
    n_neurons = sum(row["neurons"] for row in layer_table(session, dissection=about.dissection_id))
    return [
        ("network", f"{about.network} ({network.architecture})"),
        ("data set", f"{about.dataset}, {about.n_clips:,} clips"),
        ("neurons", f"{n_neurons:,} in {len(about.layers)} layers"),
        ("concept set", about.concept_set),
        ("K", f"{about.top_k} clips a side"),
        ("recipe", about.sha256[:10]),
    ]


def blocks(session: Session, about: Subject) -> list[Block]:
    """What was dissected, with what, and how to do it again."""
    network = session.get_one(Network, about.network_id)
    dissection = session.get_one(Dissection, about.dissection_id)
    figures = queries.probing_set_figures(session, dissection=about.dissection_id)
    facts = [
        ("network", f"{about.network}: {network.architecture}, {network.n_parameters:,} parameters"),
        ("revision", network.revision[:12]),
        ("trained on", _trained(network)),
        ("probed with", f"{about.dataset}: {about.n_clips:,} clips, {figures['minutes']:.1f} minutes, "
                        f"{figures['labels']} labels, {figures['folds']} folds"),
        ("concept set", about.concept_set),
        ("closed-set methods", ", ".join(method.upper() for method in about.methods) or formats.NOTHING),
        ("exemplars", f"K = {about.top_k} a side"),
        ("dissection", f"{about.dissection_id}, completed {formats.cell(dissection.completed_at)} UTC"),
    ]  # fmt: skip
    accuracy = network.extra.get("test_accuracy")
    if isinstance(accuracy, int | float):
        facts.insert(3, ("test accuracy as it was trained", formats.share(accuracy)))
    found: list[Block] = [Facts(facts)]
    if figures["naming"]:
        found.append(
            Text(
                f"{figures['naming']:,} of {figures['captions']:,} captions contain the name of the clip's class. What is said "
                "of neurons by their captions is partly circular for those clips.",
                caution=True,
            )
        )
    recipes = queries.dissection_recipe_rows(session, dissection=about.dissection_id)
    found.append(
        Table(
            "recipes", "Where it comes from",
            [
                {"stage": row["stage"], "made_by": row["backend"], "revision": row["revision"], "recipe": row["recipe"],
                 "speaks": "yes" if row["speaks"] else "", "settings": _settings(row["params"]), "made": row["created_at"]}
                for row in recipes
            ],
            note="A recipe is the hash of everything that changes a stage's result; the function that speaks for a method was "
            "fixed beforehand.",
            folded=True,
        )
    )  # fmt: skip
    run = queries.versions_of(session, dissection=about.dissection_id)
    if run is not None:
        versions = [{"library": name, "version": version} for name, version in sorted(run["versions"].items())]
        found.append(Table("versions", "With which versions", versions, folded=True))
    found.append(Commands("Commands that make this dissection again", commands(about, dissection.config)))
    return found


def side_by_side(session: Session, abouts: Sequence[Subject]) -> list[Block]:
    """Several networks: what they are, and where their dissections differ."""
    rows = []
    for about in abouts:
        network = session.get_one(Network, about.network_id)
        layers = layer_table(session, dissection=about.dissection_id)
        rows.append({
            "network": about.network, "architecture": network.architecture, "parameters": network.n_parameters,
            "trained_on": _trained(network), "layers": len(layers), "neurons": sum(row["neurons"] for row in layers),
            "clips": about.n_clips, "concept_set": about.concept_set, "top_k": about.top_k, "methods": about.methods,
            "dissection": about.dissection_id, "recipe": about.sha256[:10],
        })  # fmt: skip
    found: list[Block] = [
        Table(
            "networks",
            "The networks",
            rows,
            columns={key: "K" if key == "top_k" else key.replace("_", " ") for key in rows[0]},
        )
    ]
    differ = [
        told
        for told, of in (
            ("snapshots of the data set", [about.probing_set_id for about in abouts]),
            ("concept sets", [about.concept_set_id for about in abouts]),
            ("numbers of exemplars", [about.top_k for about in abouts]),
        )
        if len(set(of)) > 1
    ]
    made = [
        {row["stage"]: row["recipe"] for row in queries.dissection_recipe_rows(session, dissection=about.dissection_id)}
        for about in abouts
    ]
    if len({one.get("caption") for one in made}) > 1:
        differ.append("captions")
    if differ:
        found.append(
            Text(
                f"The dissections have different {', '.join(differ)}: what differs below may come from that.",
                caution=True,
            )
        )
    return found


def commands(about: Subject, config: Mapping[str, Any]) -> list[str]:
    """The command of a dissection, from the options it was made with."""
    default = asdict(DissectOptions())
    parts = ["andp", "dissect", shlex.quote(about.network), "--dataset", shlex.quote(about.dataset)]
    in_file: list[str] = []
    for name, value in config.items():
        if name in ("dataset", "stages") or _same(value, default.get(name)):
            continue
        if name in _FILE_ONLY:
            in_file.append(name)
            continue
        parts.append(f"--{_NAMES.get(name, name).replace('_', '-')}")
        if not isinstance(value, bool):
            parts.append(shlex.quote(",".join(value) if isinstance(value, list) else str(value)))
    lines = [" ".join(parts)]
    if in_file:
        told = ", ".join(f"{name} = {config[name]!r}" for name in in_file)
        lines[0] += " --config dissect.toml"
        lines.append(f"# dissect.toml, [dissect]: {told}")
    return lines


def _trained(network: Network) -> str:
    if network.trained_on is None:
        return "not known"
    fold = "" if network.held_out_fold is None else f", fold {network.held_out_fold} held out"
    return f"{network.trained_on}{fold}"


def _settings(params: Mapping[str, Any]) -> str:
    """Parameters in a line; hashes cut short."""
    told = []
    for name, value in sorted(params.items()):
        text = formats.cell(value, 3) if not isinstance(value, float) else f"{value:g}"
        text = text[:10] if isinstance(value, str) and len(value) >= 32 and value.isalnum() else text
        told.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(told)


def _same(value: Any, default: Any) -> bool:
    """Whether an option has its default; tuples were stored as lists."""
    return bool(value == (list(default) if isinstance(default, tuple) else default))
