"""`andp demo`: the whole way, from sounds to answers, in a few minutes."""

from __future__ import annotations

import time

import click

from and_platform import db
from and_platform.cli.dissect import print_report
from and_platform.cli.main import bars
from and_platform.cli.output import console, messages, show_rows
from and_platform.services import ask, dissect, last_layer, networks, provenance, samples

_CONCEPT = "water"
_PHRASE = "a low rumbling noise"
_SQL = """\
SELECT block, term, count(*) AS neurons
FROM open_concepts o JOIN dissection_overview d USING (dissection_id, network)
WHERE d.is_current AND network = 'sample-ast' AND part_of_speech = 'adjective' AND is_open_concept AND block IS NOT NULL
GROUP BY block, term
ORDER BY count(*) DESC
LIMIT 8"""


@click.command("demo")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Dissect the sample network on the sample sounds, and ask three questions.

    Needs no GPU, no model hub and no server of yours. Run it again: everything is there already, and only the questions
    are asked.

    \b
    Example:
      andp demo
    """
    began = time.monotonic()
    out, listener = console(), bars(ctx)
    engine = db.connect(tell=listener.note)
    out.print("[bold]1. sounds[/bold]  real recordings of 22 classes, five folds")
    samples.ensure_dataset(engine, listener)
    out.print("[bold]2. network[/bold]  a small audio spectrogram transformer, trained on four of the folds")
    network = networks.ensure_sample(engine)
    out.print(
        f"   {network.name}: {network.n_parameters:,} parameters; accuracy on fold {network.held_out_fold}, "
        f"which it never heard: {network.extra.get('test_accuracy', float('nan')):.2f}"
    )
    out.print("[bold]3. dissection[/bold]")
    with provenance.run(engine, "dissect", {"network": network.name}) as run:
        report = dissect.dissect(engine, network.name, dissect.Options(), progress=listener, run=run)
    print_report(engine, network.name, report)

    out.print("\n[bold]Do the descriptions of the last layer name the right classes?[/bold]")
    _show("andp sql \"SELECT neuron, class_name, closed_db FROM current_neuron_descriptions WHERE layer = 'head'\"")
    names = last_layer.evaluate(engine, network.name, dissection=report.dissection_id, progress=listener)
    show_rows(last_layer.table_7(names.rows), "table", title="top 1 / top 5 (%) / cosine of names, by function")
    out.print(f"  more: andp eval last-layer {network.name}", style="dim", markup=False)

    out.print(f"\n[bold]Which hidden neurons listen to {_CONCEPT}?[/bold]")
    _show(f"andp neurons --concept {_CONCEPT} --strategy closed_db --layer 'b*' --limit 5")
    found = ask.neurons(engine, _CONCEPT, strategy="closed_db", network=network.name, layer="b*", limit=5)
    show_rows([{key: row[key] for key in ("neuron", "rank", "score", "why")} for row in found], "table")

    out.print(f"\n[bold]Which neurons are described as {_PHRASE}?[/bold]")
    _show(f'andp search "{_PHRASE}" --limit 3')
    hits = ask.search(engine, _PHRASE, network=network.name, limit=3)
    for hit in hits:
        hit["summary"] = hit["calibrated_summary"].replace("\n", " ")
    show_rows([{key: hit[key] for key in ("neuron", "cosine", "summary")} for hit in hits], "table")

    out.print("\n[bold]What do they listen for, block by block?[/bold]")
    _show(f'andp sql "{" ".join(_SQL.split())}"')
    columns, answer = ask.sql(engine, _SQL)
    show_rows([dict(zip(columns, row, strict=True)) for row in answer], "table")
    messages().print(
        f"\ndone in {time.monotonic() - began:.0f} s. The database keeps running for the next command; "
        "to stop it: andp db stop"
    )


def _show(line: str) -> None:
    console().print(f"$ {line}", style="dim", markup=False)
