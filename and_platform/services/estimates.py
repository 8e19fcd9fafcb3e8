"""What a dissection would compute, and about how long that takes."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from and_platform import db
from and_platform.schema import Run
from and_platform.services import activations, caption, provenance
from and_platform.services.dissect import STAGES, Options, Plan, Tools, make_plan

# Seconds a unit on two slow cores, until this database has runs of its own to learn from.
_SECONDS = {
    "record": 0.02, "caption": 0.005, "match": 0.001, "summarise": 0.001, "calibrate": 0.0005, "extract": 0.0005,
    "embed": 0.005,
}  # fmt: skip


def estimate(engine: sa.Engine, network: str, options: Options) -> list[dict[str, Any]]:
    """One row per stage: what is missing, of how much, and about how many seconds it takes.

    Seconds come from the latest run in this database that did the stage, else from a rough table; None where it
    depends on an LLM that has not been asked before.
    """
    plan = make_plan(engine, network, options, Tools(options))
    wanted = options.stages or STAGES
    with db.reading(engine) as session:
        rates = _rates(session)
        rows = []
        for stage in STAGES:
            if stage not in wanted or (stage == "icl" and plan.icl is None):
                continue
            missing, total, unit = _missing(session, plan, stage)
            uses_llm = stage == "icl" or (stage == "summarise" and plan.summarise.backend == "generative")
            rate = rates.get(f"{stage}:llm" if uses_llm else stage, None if uses_llm else _SECONDS.get(stage))
            rows.append(
                {
                    "stage": stage, "to_compute": missing, "of": total, "unit": unit,
                    "about_seconds": None if rate is None else round(missing * rate, 1),
                }
            )  # fmt: skip
        return rows


def _missing(session: Session, plan: Plan, stage: str) -> tuple[int, int, str]:
    if stage == "record":
        return _missing_clips(session, plan), plan.probing.n_clips, "clips"
    if stage == "caption":
        recipe = provenance.find_recipe(session, plan.captioned)
        there = caption.caption_overview(session, plan.probing.id, recipe)[0] if recipe else 0
        return plan.probing.n_clips - there, plan.probing.n_clips, "clips"
    neurons = sum(layer.n_units for layer in plan.layers)
    recipes = {
        "match": [
            recipe for name, recipe in plan.recipes().items() if name in plan.speaking() and recipe is not plan.icl
        ],
        "icl": [plan.icl] if plan.icl else [],
        "summarise": [plan.summarise],
        "calibrate": [plan.calibrate],
        "extract": [plan.extract],
        "embed": [plan.calibrate],  # a summary is embedded once it is calibrated
    }[stage]
    ids = [provenance.find_recipe(session, recipe) for recipe in recipes]
    done = [provenance.finished_layers(session, recipe) if recipe else set() for recipe in ids]
    missing = sum(layer.n_units for layer in plan.layers if any(layer.id not in finished for finished in done))
    return missing, neurons, "neurons"


def _missing_clips(session: Session, plan: Plan) -> int:
    """Clips whose activations are neither folded nor landed for some layer."""
    recipe = provenance.find_recipe(session, plan.record)
    recording = session.scalar(sa.text("SELECT id FROM recordings WHERE recipe_id = :id"), {"id": recipe})
    if recording is None:
        return plan.probing.n_clips
    done = set(
        session.scalars(sa.text("SELECT layer_id FROM recorded_layers WHERE recording_id = :id"), {"id": recording})
    )
    layers = [layer.id for layer in plan.layers if layer.id not in done]
    if not layers:
        return 0
    n = plan.probing.n_clips
    blocks = range((n + activations.BLOCK - 1) // activations.BLOCK)
    return sum(
        activations.block_bounds(block, n)[1]
        for block in blocks
        if activations.missing_layers(session, recording, block, layers)
    )


def _rates(session: Session) -> dict[str, float]:
    """Seconds a unit by stage, of the latest run that did it."""
    rates: dict[str, float] = {}
    counts = session.scalars(
        sa.select(Run.counts).where(Run.command == "dissect", Run.outcome == "ok").order_by(Run.id.desc()).limit(20)
    )
    for of_run in counts:
        for stage, told in of_run.items():
            if isinstance(told, dict) and told.get("units") and stage not in rates:
                rates[stage] = told["seconds"] / told["units"]
    return rates
