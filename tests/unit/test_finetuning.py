"""Tiny networks in the published layouts are trained, in full and the head alone; interrupted, they go on as if nothing was."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from and_platform.backends.base import Clip
from and_platform.backends.networks import finetuning, load_network
from and_platform.backends.networks.checkpointing import random_state, write_whole
from and_platform.backends.networks.finetuning import (
    PROGRESS,
    RECIPES,
    EpochMetrics,
    FineTuneConfig,
    FineTuneResult,
    Item,
    Listener,
    finetune,
)
from and_platform.backends.networks.heads import with_head
from and_platform.backends.networks.optimising import warm_cosine
from and_platform.backends.networks.record import logits_batches
from and_platform.backends.networks.training import TrainConfig, train_ast
from and_platform.backends.networks.varying import Clips, Steps, hide
from and_platform.errors import BackendError, ConfigError, InputError, WeightsMissingError
from tests import tiny
from tests.checkpoints_beats import write_beats
from tests.checkpoints_networks import clap, speech, whisper

FOLDS = 4
FEW: dict[str, Any] = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}
MAKERS: dict[str, Callable[[Path], Path]] = {
    "ast": lambda path: tiny.network(path, blocks=2, hidden_dropout_prob=0.1),
    "beats": lambda path: write_beats(path.with_suffix(".pt"), encoder_layerdrop=0.4, dropout=0.1),
    "hubert": lambda path: speech(path, "HubertModel", mask_time_length=2, mask_time_prob=0.2),
    "wavlm": lambda path: speech(path, "WavLMForSequenceClassification", large=True),
    "whisper": whisper,
}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Hums and hisses of 0.1 to 0.7 s, 4 folds of 4."""
    folder = tmp_path_factory.mktemp("sounds")
    made = []
    for number, item in enumerate(tiny.labelled()[: 4 * FOLDS]):
        path = folder / f"{number}.wav"
        soundfile.write(path, item.waveform[: round(0.7 * tiny.RATE)], tiny.RATE)
        made.append(Item(path, item.label, number // 2 % FOLDS + 1))
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint by name, made once."""
    folder = tmp_path_factory.mktemp("published")
    made: dict[str, Path] = {}

    def source(name: str) -> Path:
        if name not in made:
            made[name] = MAKERS[name](folder / name)
        return made[name]

    return source


def weights(directory: Path) -> dict[str, Tensor]:
    """As loaded: files of `transformers` keep the names they were published with."""
    return load_network(directory).model.state_dict()


def logits(directory: Path, items: list[Item]) -> Tensor:
    network = load_network(directory)
    clips = Clips([item.path for item in items], network.rate)
    sounds = [Clip(item.path.name, clips.waveform(i), network.rate) for i, item in enumerate(items)]
    return torch.from_numpy(np.concatenate(list(logits_batches(network, sounds, batch_size=3))))


class StoppedError(Exception):
    pass


class Ear(Listener):
    """Writes down the epochs, and stops at one where it is told to: before anything of it is on disk."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.epochs: list[EpochMetrics] = []
        self.batches = 0
        self._stop_at = stop_at

    def epoch(self, metrics: EpochMetrics) -> None:
        if metrics.epoch == self._stop_at:
            raise StoppedError
        self.epochs.append(metrics)


# ---------------------------------------------------------------------- what comes out


def test_all_of_ast_learns_repeats_itself_and_loads_again(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"epochs": 20, "batch_size": 6, "learning_rate": 3e-3}
    sources("ast")  # made now, with random numbers of its own
    before = random_state()
    ear = Ear()
    first = finetune(items, 1, sources("ast"), tmp_path / "a", options=options, listener=ear)
    after = random_state()
    assert torch.equal(before["torch"], after["torch"]) and torch.equal(before["numpy"][1], after["numpy"][1])
    torch.rand(5)
    np.random.rand(5)
    finetune(items, 1, sources("ast"), tmp_path / "b", options=options)
    again = finetune(items, 1, sources("ast"), tmp_path / "c", options=options | {"seed": 1, "epochs": 1})
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    assert again.classes == first.classes == ["hiss", "hum"] == load_network(tmp_path / "a").classes

    assert first.test_accuracy >= 0.75 and first.epochs[-1].loss < 0.6 * first.epochs[0].loss
    assert (first.n_train, first.n_validation, first.n_test) == (12, 0, 4)
    assert (first.saved_epoch, first.begun_at) == (20, 1) and first.epochs == ear.epochs
    assert first.epochs[-1].learning_rate < 0.01 * first.epochs[0].learning_rate
    right = logits(tmp_path / "a", items).argmax(1) == torch.tensor([item.label == "hum" for item in items]).long()
    held_out = torch.tensor([item.fold == 1 for item in items])
    assert float(right[held_out].float().mean()) == first.test_accuracy

    told = json.loads((tmp_path / "a" / "training.json").read_text())
    assert (told["held_out_fold"], told["train_folds"], told["trainable"]) == (1, [2, 3, 4], "all")
    assert told["recipe"]["learning_rate"] == 3e-3 and "Gong et al. 2021" in told["recipe_source"]
    assert told["from"]["weights"].startswith("sha256:") and told["from"]["origin"] == str(sources("ast"))
    assert [epoch["loss"] for epoch in told["epochs"]] == [metrics.loss for metrics in first.epochs]
    assert not (tmp_path / "a" / PROGRESS).exists()


@pytest.mark.parametrize("name", MAKERS)
def test_in_full_every_family_changes_all_over(
    name: str, items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    result = finetune(items, 2, sources(name), tmp_path / "out", options=FEW)
    trained = weights(tmp_path / "out")
    begun = with_head(load_network(sources(name)), result.classes, 0).network.model.state_dict()
    moved = [key for key, value in trained.items() if not torch.equal(value, begun[key])]
    never = {key for key in trained if key not in moved}
    # positions of Whisper's encoder are a table of sines, HuBERT's token for hidden stretches may not have been drawn
    assert all("embed_positions" in key or "masked_spec_embed" in key or "k_proj.bias" in key for key in never), never
    network = load_network(tmp_path / "out")
    assert network.classes == ["hiss", "hum"] and network.layers[-1].kind == "head"
    assert all(math.isfinite(metrics.loss) for metrics in result.epochs)


@pytest.mark.parametrize("name", MAKERS)
def test_the_head_alone_leaves_the_encoder_as_it_was(
    name: str, items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"epochs": 40, "head_learning_rate": 1e-2, "batch_size": 5}
    result = finetune(items, 1, sources(name), tmp_path / "out", trainable="head", options=options, validation_fold=3)
    begun = with_head(load_network(sources(name)), result.classes, 0)
    trained, before = weights(tmp_path / "out"), begun.network.model.state_dict()
    changed = {key.rpartition(".")[0] for key, value in trained.items() if not torch.equal(value, before[key])}
    assert changed == set(begun.fresh)
    assert result.epochs[-1].loss < result.epochs[0].loss

    # what was measured on standardised features is what the saved network says of the clips
    validation = [item for item in items if item.fold == 3]
    said, labels = logits(tmp_path / "out", validation), torch.tensor([item.label == "hum" for item in validation])
    saved = result.epochs[result.saved_epoch - 1]
    assert float((said.argmax(1) == labels.long()).float().mean()) == saved.validation_accuracy
    missed = float(torch.nn.functional.cross_entropy(said, labels.long()))
    assert missed == pytest.approx(saved.validation_loss, rel=1e-3, abs=1e-4)


def test_a_classifier_keeps_its_projection_and_a_bare_encoder_gets_one(sources: Callable[[str], Path]) -> None:
    bare = with_head(load_network(sources("hubert")), ["a", "b"], 0)
    assert bare.fresh == ["projector", "classifier"] and bare.family == "wav2vec2"
    full = load_network(sources("wavlm"))
    projection = full.model.get_submodule("projector").weight.detach().clone()
    headed = with_head(full, ["a", "b", "c", "d"], 0)
    assert headed.fresh == ["classifier"] and torch.equal(
        headed.network.model.get_submodule("projector").weight, projection
    )
    assert headed.network.model.get_submodule("classifier").weight.shape[0] == 4


def test_what_cannot_be_given_a_head_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="transformers has no classifier for a clap_audio_model"):
        with_head(load_network(clap(tmp_path / "clap")), ["a", "b"], 0)
    with pytest.raises(InputError, match="cannot be given a new head"):
        with_head(load_network("tests.hand_network:build"), ["a", "b"], 0)


# ---------------------------------------------------------------------- folds


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_the_held_out_clips_change_nothing(
    trainable: Any, items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    others = []
    for item in items:
        if item.fold == 2:
            path = tmp_path / item.path.name
            soundfile.write(path, rng.normal(0, 0.2, 9000), tiny.RATE)
            item = item._replace(path=path)
        others.append(item)
    results = [
        finetune(
            given, 2, sources("ast"), tmp_path / str(number), trainable=trainable, options={"epochs": 2},
            validation_fold=4, patience=1,
        )
        for number, given in enumerate((items, others))
    ]  # fmt: skip
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == (tmp_path / "1" / "model.safetensors").read_bytes()
    assert [metrics[:-1] for metrics in results[0].epochs] == [metrics[:-1] for metrics in results[1].epochs]


def test_the_best_epoch_is_saved_and_patience_ends(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([(0.5, 0.9), (0.75, 0.8), (0.75, 0.7), (0.75, 0.7), (0.5, 0.1), (1.0, 0.0)])
    monkeypatch.setattr(finetuning._Run, "_validate", lambda *_: next(measured))
    kept: dict[int, dict[str, Tensor]] = {}

    class Copying(Ear):
        def epoch(self, metrics: EpochMetrics) -> None:
            for path in (tmp_path / "out" / PROGRESS).glob("best-*.pt"):
                kept[int(path.stem.partition("-")[2])] = torch.load(path, weights_only=True)

    result = finetune(
        items, 1, sources("ast"), tmp_path / "out", options={**FEW, "epochs": 9}, validation_fold=2, patience=2,
        listener=Copying(),
    )  # fmt: skip
    assert (result.saved_epoch, len(result.epochs)) == (3, 5)
    assert (result.validation_accuracy, result.n_validation, result.n_train) == (0.75, 4, 8)
    saved = weights(tmp_path / "out")
    assert all(torch.equal(saved[key], kept[3][key]) for key in saved)
    assert any(not torch.equal(saved[key], kept[2][key]) for key in saved)


def test_a_network_that_has_learned_the_held_out_clips_is_refused(items: list[Item], tmp_path: Path) -> None:
    config = TrainConfig(epochs=1, batch_size=8, hidden=24, layers=1, heads=2, frames=64, mel_bins=32)
    train_ast(tiny.labelled(), 1, tmp_path / "small", config, provenance={"dataset": "tones"})
    told = {"provenance": {"dataset": "tones"}, "options": {"epochs": 1}, "trainable": "head"}
    with pytest.raises(InputError, match="has learned the clips of fold 2 of tones"):
        finetune(items, 2, tmp_path / "small", tmp_path / "out", **told)
    finetune(items, 2, tmp_path / "small", tmp_path / "out", **{**told, "provenance": {"dataset": "other"}})
    finetune(items, 1, tmp_path / "small", tmp_path / "same", **told)


# ---------------------------------------------------------------------- interruption


@pytest.mark.parametrize(
    ("name", "trainable"),
    [("ast", "all"), ("ast", "head"), ("beats", "all"), ("beats", "head"), ("hubert", "all"), ("hubert", "head")],
)
@pytest.mark.parametrize("stop_at", [1, 3])
def test_an_interrupted_run_ends_like_an_undisturbed_one(
    name: str, trainable: Any, stop_at: int, items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    def run(directory: str, listener: Listener) -> FineTuneResult:
        options = {"epochs": 4, "batch_size": 5} | ({"learning_rate": 1e-3} if trainable == "all" else {})
        return finetune(
            items, 1, sources(name), tmp_path / directory, trainable=trainable, options=options, validation_fold=2,
            patience=4, listener=listener,
        )  # fmt: skip

    whole = run("whole", Ear())
    with pytest.raises(StoppedError):
        run("parts", Ear(stop_at))
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    torch.rand(9)
    np.random.rand(9)
    ear = Ear()
    rest = run("parts", ear)
    assert rest.begun_at == stop_at == ear.epochs[0].epoch
    assert [metrics[:-1] for metrics in rest.epochs] == [metrics[:-1] for metrics in whole.epochs]
    files = [(tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts")]
    assert files[0] == files[1]
    assert rest.test_accuracy == whole.test_accuracy and rest.saved_epoch == whole.saved_epoch

    done = run("parts", Ear(stop_at=1))  # which would raise if anything were trained
    assert done.begun_at == 5 and done.epochs == rest.epochs and done.classes == rest.classes


def test_a_run_killed_while_saving_saves_again(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoppedError

    for name in ("ast", "beats"):
        out = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(finetuning, "_write_record", fail)
            with pytest.raises(StoppedError):
                finetune(items, 1, sources(name), out, options=FEW)
        assert [path.name for path in out.iterdir()] == [PROGRESS]  # the network comes whole, with its record
        result = finetune(items, 1, sources(name), out, options=FEW, listener=Ear(stop_at=1))
        assert result.begun_at == 4 and (out / "model.safetensors").is_file()
        assert (out / "training.json").is_file() and not (out / PROGRESS).exists()


def test_a_record_says_that_the_run_is_over(items: list[Item], sources: Callable[[str], Path], tmp_path: Path) -> None:
    """Whatever is left of the state beside it: the first version removed that file by file."""
    finetune(items, 1, sources("ast"), tmp_path, options=FEW)
    (tmp_path / PROGRESS).mkdir()
    (tmp_path / PROGRESS / "plan.json").write_text("{}")
    file, record = ((tmp_path / name).read_bytes() for name in ("model.safetensors", "training.json"))
    done = finetune(items, 1, sources("ast"), tmp_path, options=FEW, listener=Ear(stop_at=1))
    assert done.begun_at == 4 and not (tmp_path / PROGRESS).exists()
    assert file == (tmp_path / "model.safetensors").read_bytes()
    assert record == (tmp_path / "training.json").read_bytes()


def test_notes_of_the_user_stay(items: list[Item], sources: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        finetune(items, 1, sources("ast"), tmp_path, options=FEW, listener=Ear(stop_at=2))
    (tmp_path / "notes.txt").write_text("mine")
    assert finetune(items, 1, sources("ast"), tmp_path, options=FEW).begun_at == 2
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / PROGRESS).exists()
    assert (tmp_path / "training.json").is_file()


def test_two_at_once_do_not_mix(items: list[Item], sources: Callable[[str], Path], tmp_path: Path) -> None:
    class Second(Ear):
        def epoch(self, metrics: EpochMetrics) -> None:
            super().epoch(metrics)
            with pytest.raises(ConfigError, match="another command is training in"):
                finetune(items, 1, sources("ast"), tmp_path / "out", options=FEW)

    second = Second()
    result = finetune(items, 1, sources("ast"), tmp_path / "out", options=FEW, listener=second)
    assert len(second.epochs) == 3 and result.begun_at == 1
    assert not (tmp_path / "out" / PROGRESS).exists()


def test_clips_are_told_apart_by_what_they_hold(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    def copied(folder: str) -> list[Item]:
        (tmp_path / folder).mkdir()
        copies = [item._replace(path=tmp_path / folder / item.path.name) for item in items]
        for item, copy in zip(items, copies, strict=True):
            copy.path.write_bytes(item.path.read_bytes())
        return copies

    def run(given: list[Item], listener: Listener) -> FineTuneResult:
        return finetune(
            given, 1, sources("ast"), tmp_path / "out", trainable="head", options={"epochs": 3}, listener=listener
        )

    here, moved, others = copied("here"), copied("moved"), copied("others")
    soundfile.write(others[-1].path, np.random.default_rng(1).normal(0, 0.2, 4000), tiny.RATE)
    with pytest.raises(StoppedError):
        run(here, Ear(stop_at=2))
    with pytest.raises(ConfigError, match="clips sha256"):
        run(others, Ear())  # of the same names, in another folder
    before = here[-1].path.read_bytes()
    here[-1].path.write_bytes(others[-1].path.read_bytes())
    with pytest.raises(ConfigError, match="clips sha256"):
        run(here, Ear())
    here[-1].path.unlink()
    with pytest.raises(InputError, match=r"15\.wav cannot be read \(No such file or directory\); put it back"):
        run(here, Ear())
    here[-1].path.write_bytes(before)
    assert run(moved, Ear()).begun_at == 2


def test_only_its_own_run_goes_on_in_a_directory(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        finetune(items, 1, sources("ast"), out, options=FEW, listener=Ear(stop_at=2))
    others: tuple[tuple[dict[str, Any], str], ...] = (
        ({"options": FEW | {"learning_rate": 2e-3}}, r"learning rate: 0.001, now 0.002"),
        ({"options": FEW, "validation_fold": 3}, "validation fold: None, now 3"),
        ({"options": FEW, "provenance": {"dataset": "x"}}, "dataset: None, now x"),
        ({"trainable": "head"}, "begun with another recipe"),
    )
    for changed, message in others:
        with pytest.raises(ConfigError, match=message):
            finetune(items, 1, sources("ast"), out, **changed)
    with pytest.raises(ConfigError, match="clips sha256"):
        finetune(items[:-1], 1, sources("ast"), out, options=FEW)
    with pytest.raises(ConfigError, match="weights"):
        finetune(items, 1, tiny.network(tmp_path / "other", seed=5), out, options=FEW)
    result = finetune(items, 1, sources("ast"), out, options=FEW)
    assert result.begun_at == 2
    with pytest.raises(ConfigError, match=r"epochs: 3, now 5.*name a new folder"):
        finetune(items, 1, sources("ast"), out, options=FEW | {"epochs": 5})

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        finetune(items, 1, sources("ast"), tmp_path / "full", options=FEW)
    (tmp_path / "full" / "training.json").write_text("{}")
    with pytest.raises(ConfigError, match="that another recipe trained"):
        finetune(items, 1, sources("ast"), tmp_path / "full", options=FEW)


def test_a_damaged_state_is_told(items: list[Item], sources: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        finetune(items, 1, sources("ast"), tmp_path, options=FEW, listener=Ear(stop_at=2))
    (tmp_path / PROGRESS / "state.pt").write_bytes(b"nothing")
    with pytest.raises(WeightsMissingError, match=r"state\.pt holds no plain checkpoint"):
        finetune(items, 1, sources("ast"), tmp_path, options=FEW)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file"
    write_whole(path, lambda stream: stream.write(b"old"))

    def fail(stream: Any) -> None:
        stream.write(b"half")
        raise StoppedError

    with pytest.raises(StoppedError):
        write_whole(path, fail)
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------- batches


def test_parts_workers_and_memory_change_nothing_but_rounding(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = tiny.network(tmp_path / "plain")  # without dropout, whose numbers come part by part
    made: dict[str, dict[str, Tensor]] = {}
    ways: dict[str, dict[str, Any]] = {
        "whole": {}, "workers": {"workers": 2}, "streamed": {"memory": 30_000}, "parts": {"options": {"accumulate": 3}},
    }  # fmt: skip
    for name, way in ways.items():
        options = FEW | way.pop("options", {}) | {"mixup": 0.5, "roll": 0.1, "frequency_mask": 0, "time_mask": 0}
        finetune(items, 1, plain, tmp_path / name, options=options, **way)
        made[name] = weights(tmp_path / name)
    for key, value in made["whole"].items():
        assert torch.equal(value, made["workers"][key]) and torch.equal(value, made["streamed"][key]), key
        torch.testing.assert_close(made["parts"][key], value, rtol=1e-3, atol=2e-5)
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["recipe"]["accumulate"] == 3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_weights_of_full_precision(
    precision: str, items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    options = FEW | {"precision": precision}
    result = finetune(items, 1, sources("beats"), tmp_path / "half", options=options)
    full = finetune(items, 1, sources("beats"), tmp_path / "full", options=FEW | {"precision": "auto"})
    assert all(value.dtype is torch.float32 for value in load_file(tmp_path / "half" / "model.safetensors").values())
    losses = [[metrics.loss for metrics in run.epochs] for run in (result, full)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    recipes = [json.loads((tmp_path / name / "training.json").read_text())["recipe"] for name in ("half", "full")]
    assert [recipe["precision"] for recipe in recipes] == [precision, "float32"]


def test_an_epoch_hears_every_clip_once_in_an_order_of_its_own(
    items: list[Item], sources: Callable[[str], Path]
) -> None:
    network = load_network(sources("ast"))
    clips = Clips([item.path for item in items], network.rate)
    labels, members = list(range(len(items))), list(range(len(items)))
    quiet = FineTuneConfig(1, 5, 1, 1, 1, 0, (0.9, 0.99))
    orders = []
    for seed in ((0, 1), (0, 1), (0, 2), (1, 1)):
        steps = Steps(network, clips, members, labels, len(items), batch_size=5, variation=quiet, seed=seed)
        parts = [part for step in range(len(steps)) for part in steps[step]]
        assert [len(part.targets) for part in parts] == [5, 5, 5, 1]
        orders.append(torch.cat([part.targets.argmax(1) for part in parts]).tolist())
    assert sorted(orders[0]) == members and orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    plain = Steps(network, clips, members, labels, len(items), batch_size=5)
    assert torch.cat([part.targets.argmax(1) for part in plain[0]]).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        plain[4]


def test_lengths_that_must_not_mix_are_parts_of_one_step(items: list[Item], sources: Callable[[str], Path]) -> None:
    network = load_network(sources("hubert"))
    assert network.uniform_length
    clips = Clips([item.path for item in items], network.rate)
    parts = Steps(network, clips, range(6), [0, 1] * 3, 2, batch_size=6)[0]
    lengths = [clips.waveform(i).size for i in range(6)]
    assert len(parts) == len(set(lengths)) and sum(part.share for part in parts) == pytest.approx(1)
    for part in parts:
        size = int(part.batch["n_samples"][0])
        assert len(part.targets) == lengths.count(size) and part.share == pytest.approx(len(part.targets) / 6)
        expected = {i % 2 for i in range(6) if lengths[i] == size}
        assert {int(label) for label in part.targets.argmax(1)} == expected


@pytest.mark.parametrize("name", ["ast", "beats"])
def test_bands_and_stretches_are_hidden_within_the_sound(name: str, sources: Callable[[str], Path]) -> None:
    network = load_network(sources(name))
    waveforms = [np.random.default_rng(0).normal(0, 0.1, n).astype(np.float32) for n in (9600, 4800)]
    key = "fbank" if name == "beats" else "input_values"
    before = network.prepare(waveforms)[key]
    frames = [1 + (len(waveform) - 400) // 160 for waveform in waveforms]
    frames = [min(n, before.shape[1]) for n in frames]
    silence = 0.0 if name == "beats" else 4.0 / 8.0  # of tests.tiny: mean -4, deviation 4
    by = replace(RECIPES["ast"]["all"].config, frequency_mask=6, time_mask=9)
    widths = set()
    for seed in range(30):
        batch = network.prepare(waveforms)
        hide(network, batch, by, np.random.default_rng(seed))
        for row in range(2):
            changed = batch[key][row] != before[row]
            columns = changed.all(0) if frames[row] == before.shape[1] else changed[: frames[row]].all(0)
            times = changed.all(1)
            assert bool((batch[key][row][changed] == silence).all())
            assert int(columns.sum()) <= 6 and int(times.sum()) <= 9
            assert not bool(times[frames[row] :].any()), "a stretch reaches into the padding"
            widths.add((int(columns.sum()), int(times.sum())))
    assert len(widths) > 10
    batch = network.prepare(waveforms)
    hide(network, batch, replace(by, frequency_mask=0, time_mask=0), np.random.default_rng(0))
    assert torch.equal(batch[key], before)


def test_mixtures_and_rotations(tmp_path: Path, sources: Callable[[str], Path]) -> None:
    network = load_network(sources("hubert"))
    ramp = np.arange(1, 801, dtype=np.float32) / 1000
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", ramp * (1 - 3 * number) / 2, tiny.RATE, subtype="FLOAT")
    clips = Clips([tmp_path / "0.wav", tmp_path / "1.wav"], network.rate)
    quiet = FineTuneConfig(1, 1, 1, 1, 1, 0, (0.9, 0.99))
    heard: list[Any] = []

    class Listening:
        uniform_length = False

        def prepare(self, waveforms: Any) -> dict[str, Tensor]:
            heard.extend(waveforms)
            return {"x": torch.zeros(len(waveforms))}

    for seed in range(40):
        variation = replace(quiet, mixup=1.0)
        steps = Steps(Listening(), clips, [0], [0], 2, batch_size=1, variation=variation, seed=(seed,))  # type: ignore[arg-type]
        assert torch.allclose(steps[0][0].targets, torch.tensor([[1.0, 0.0]]))  # with itself
        np.testing.assert_allclose(heard.pop(), clips.waveform(0), atol=1e-6)
        steps = Steps(Listening(), clips, [0, 1], [0, 1], 2, batch_size=2, variation=variation, seed=(seed,))  # type: ignore[arg-type]
        for target in steps[0][0].targets:
            share = float(target[0])
            mixed = share * clips.waveform(0) + (1 - share) * clips.waveform(1)
            np.testing.assert_allclose(heard.pop(0), mixed, atol=1e-6)
        rolled = replace(quiet, roll=0.01)
        Steps(Listening(), clips, [0], [0], 2, batch_size=1, variation=rolled, seed=(seed,))[0]  # type: ignore[arg-type]
        sound = heard.pop()
        by = int(np.flatnonzero(sound == sound.min())[0])
        assert by % 160 == 0 and np.array_equal(np.roll(sound, -by), clips.waveform(0))


# ---------------------------------------------------------------------- recipes and rates


def test_recipes_are_complete_and_name_their_source() -> None:
    assert set(RECIPES) == {"ast", "beats", "wav2vec2", "other"}
    for family in RECIPES.values():
        assert set(family) == {"all", "head"}
        for recipe in family.values():
            assert len(recipe.source) > 30
        head = family["head"].config
        assert (head.mixup, head.roll, head.frequency_mask, head.time_mask) == (0, 0, 0, 0)
    published = RECIPES["ast"]["all"].config
    assert (published.learning_rate, published.epochs, published.batch_size) == (1e-5, 25, 48)
    assert (published.frequency_mask, published.time_mask, published.mixup) == (24, 96, 0)


def test_rates_fall_with_depth_and_vectors_do_not_decay(sources: Callable[[str], Path]) -> None:
    headed = with_head(load_network(sources("beats")), ["a", "b"], 0)
    config = replace(
        RECIPES["beats"]["all"].config, learning_rate=1.0, head_learning_rate=7.0, layer_decay=0.5, weight_decay=0.1
    )
    groups = finetuning._groups(headed, config)
    names = {parameter: name for name, parameter in headed.network.model.named_parameters()}
    rates = {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}
    assert set(rates) == set(names.values())
    assert rates["predictor.weight"] == rates["predictor.bias"] == 7.0 == groups[-1]["lr"]
    assert rates["encoder.layers.1.fc1.weight"] == 0.5 and rates["encoder.layers.0.fc2.bias"] == 0.25
    assert rates["patch_embedding.weight"] == rates["layer_norm.bias"] == 0.125
    for group in groups:
        assert {parameter.dim() > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}

    tail = finetuning._groups(with_head(load_network(sources("ast")), ["a", "b"], 0), config)
    assert {group["lr"] for group in tail} == {0.125, 0.25, 0.5, 1.0, 7.0}  # the norm after the blocks does not decay


def test_a_rate_given_alone_takes_the_head_along(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    for name, options, expected in (
        ("both", {"learning_rate": 3e-4}, (3e-4, 3e-3)),
        ("each", {"learning_rate": 3e-4, "head_learning_rate": 1e-5}, (3e-4, 1e-5)),
        ("head", {"head_learning_rate": 1e-5}, (3e-5, 1e-5)),
    ):
        finetune(items, 1, sources("beats"), tmp_path / name, options=options | {"epochs": 1})
        recipe = json.loads((tmp_path / name / "training.json").read_text())["recipe"]
        assert (recipe["learning_rate"], recipe["head_learning_rate"]) == pytest.approx(expected)


def test_the_schedule_rises_and_falls_to_zero() -> None:
    rate = warm_cosine(0.1, 100)
    assert [rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate(55) == pytest.approx(0.5) and rate(100) == pytest.approx(0)


def test_short_clips_are_not_hidden_by_a_longer_stretch(items: list[Item], tmp_path: Path) -> None:
    """transformers refuses to hide stretches longer than the clip; the saved configuration hides as before."""
    source = speech(tmp_path / "wavlm", "WavLMModel", mask_time_length=400, mask_time_prob=0.3)
    finetune(items, 1, source, tmp_path / "out", options=FEW)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["apply_spec_augment"] is True and told["mask_time_length"] == 400


# ---------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"held_out_fold": 9}, InputError, "no clip is in fold 9, so nothing is left to test on; there are folds 1, 2, 3, 4"),
        ({"validation_fold": 9}, InputError, "no clip is in fold 9, so nothing is left to validate with"),
        ({"validation_fold": 1}, InputError, "fold 1 is held out, so nothing may be chosen by it"),
        ({"patience": 2}, InputError, "name one, or leave the patience out"),
        ({"options": {"colour": 1}}, InputError, "no option 'colour'"),
        ({"trainable": "head", "options": {"learning_rate": 1e-3}}, InputError, "the encoder has no learning rate"),
        ({"trainable": "head", "options": {"accumulate": 2}}, InputError, "leave the accumulation out"),
        ({"source": "/nowhere/at-all"}, WeightsMissingError, "no model at /nowhere/at-all"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(
    changed: dict[str, Any], error: type[Exception], message: str, items: list[Item], sources: Callable[[str], Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    given = {"held_out_fold": 1, "source": sources("ast"), **changed}
    with pytest.raises(error, match=message):
        finetune(items, given.pop("held_out_fold"), given.pop("source"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_classes_and_files_are_checked(items: list[Item], sources: Callable[[str], Path], tmp_path: Path) -> None:
    lonely = [item._replace(label="hum") if item.fold != 1 else item for item in items]
    with pytest.raises(InputError, match=r"have 1 class\(es\)"):
        finetune(lonely, 1, sources("ast"), tmp_path / "out", options=FEW)
    unseen = [item._replace(label="bell") if item.fold == 1 else item for item in items]
    with pytest.raises(InputError, match="'bell' is only in folds that are not trained on"):
        finetune(unseen, 1, sources("ast"), tmp_path / "out", options=FEW)
    (tmp_path / "text.wav").write_text("this is no sound at all")
    broken = [*items[:-1], items[-1]._replace(path=tmp_path / "text.wav")]
    with pytest.raises(InputError, match=r"text\.wav: text: the file holds text"):
        finetune(broken, 1, sources("ast"), tmp_path / "out", options=FEW)


def test_a_loss_that_is_no_number_ends_the_run(
    items: list[Item], sources: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=r"the loss of epoch \d+ is (nan|inf); try a lower learning rate"):
        finetune(items, 1, sources("beats"), tmp_path / "out", options={"epochs": 6, "learning_rate": 1e30})
