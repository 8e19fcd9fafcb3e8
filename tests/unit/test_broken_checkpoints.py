"""A checkpoint that is broken, however oddly, is one line that names it: never a traceback, and never a crash."""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from and_platform.backends.networks import load_network
from and_platform.backends.registry import create
from and_platform.backends.weights import read_pickle
from and_platform.errors import AndpError, BackendError, WeightsMissingError
from tests import checkpoints_networks
from tests.checkpoints_beats import write_beats
from tests.mutations import mutate

N_EACH = 60
"""Broken copies of each checkpoint; `benchmarks/broken_checkpoints.py` tries more."""


def ast(folder: Path) -> Path:
    return checkpoints_networks.ast(folder / "ast")


def speech(folder: Path) -> Path:
    return checkpoints_networks.speech(folder / "speech", "HubertForSequenceClassification")


def pickled(folder: Path) -> Path:
    return checkpoints_networks.pickled(checkpoints_networks.ast(folder / "pickled"))


def beats_file(folder: Path) -> Path:
    return write_beats(folder / "beats.pt", ["a", "b", "c"])


def beats_folder(folder: Path) -> Path:
    from and_platform.backends.networks import beats

    beats.save(beats.load(beats_file(folder)), folder / "beats")
    return folder / "beats"


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    made.__name__: made for made in (ast, speech, pickled, beats_file, beats_folder)
}


def broken(load: Callable[[Path], Any], original: Path, work: Path, seed: int) -> AndpError | None:
    """Break a copy and load it: the error, None where it loads nevertheless."""
    chance = random.Random(seed)
    copy = work / original.name
    if original.is_dir():
        shutil.copytree(original, copy)
        file = chance.choice(
            sorted(file for file in copy.iterdir() if file.suffix in (".json", ".safetensors", ".bin"))
        )
    else:
        file = Path(shutil.copy(original, copy))
    how = mutate(file, chance)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(copy)
    except AndpError as exc:
        assert isinstance(exc, BackendError), (seed, how, exc)
        assert "\n" not in str(exc), (seed, how, exc)
        assert len(str(exc)) < 2000, (seed, how, exc)
        assert original.stem in str(exc), (seed, how, exc)
        return exc
    except Exception as exc:
        raise AssertionError(f"seed {seed}, {how}: {type(exc).__name__}: {exc}") from exc
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        copy.unlink(missing_ok=True)
    return None


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_networks(kind: str, tmp_path: Path) -> None:
    original = CHECKPOINTS[kind](tmp_path)
    load_network(original)
    work = tmp_path / "work"
    work.mkdir()
    outcomes = [broken(load_network, original, work, seed) for seed in range(N_EACH)]
    assert sum(outcome is not None for outcome in outcomes) > N_EACH // 4  # most were broken indeed


@pytest.mark.parametrize("kind", ["clip_dir", "llama_dir", "whisper_dir"])
def test_backends(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    role = {"clip_dir": "encoder/clip", "llama_dir": "llm/transformers", "whisper_dir": "captioner/audio-lm"}[kind]

    def load(path: Path) -> Any:
        made = create(role.partition("/")[0], f"{role.partition('/')[2]}:{path}", device="cpu")
        return made._model if hasattr(type(made), "_model") or hasattr(made, "_model") else made

    work = tmp_path / "work"
    work.mkdir()
    for seed in range(N_EACH // 2):
        broken(load, request.getfixturevalue(kind), work, seed)


class _Odd:
    """What a pickle may do while it is read."""

    def __init__(self, raised: type[BaseException]) -> None:
        self.raised = raised

    def __reduce__(self) -> Any:
        return self.raised, ("odd",)


def _pickles() -> dict[str, bytes]:
    zipped = io.BytesIO()
    torch.save({"x": torch.zeros(4)}, zipped)
    compressed = io.BytesIO()
    with zipfile.ZipFile(zipped) as given, zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as made:
        for name in given.namelist():
            made.writestr(name, given.read(name) + bytes(10**6))
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    return {
        "empty": b"",
        "text": b"hello",
        "pop of an empty stack": b"\x80\x02" + b"0" * 50 + b".",
        "no mark": b"\x80\x02t.",
        "memo": b"\x80\x02h\x07.",
        "deep": b"\x80\x02" + b"(" * 10**5 + b"l" * 10**5 + b".",
        "reduce of a number": b"\x80\x02K\x01K\x02R.",
        "build": b"\x80\x02K\x01K\x02b.",
        "huge int": b"\x80\x02\x8b" + (10**8).to_bytes(4, "little") + b"\x01.",
        "odd": pickle.dumps(_Odd(AssertionError)),
        "zip without data": b"PK\x05\x06" + bytes(18),
        "compressed": compressed.getvalue(),
        "cut": zipped.getvalue()[:200],
        "protocol": b"\x80\xff.",
        "stop": b".",
    }


@pytest.mark.parametrize("name", _pickles())
def test_pickles(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(_pickles()[name])
    for read in (read_pickle, load_network):
        with pytest.raises(WeightsMissingError) as failure:
            read(file)
        assert "\n" not in str(failure.value)
        assert "weights.pt" in str(failure.value)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_layers": 10**9},
        {"encoder_layers": 0},
        {"encoder_attention_heads": 0},
        {"embed_dim": -3},
        {"embed_dim": "x"},
        {"predictor_class": 10**15},
        {"activation_fn": ["gelu"]},
        {"dropout": float("nan")},
        {"conv_pos_groups": 7},
        {"feed_forward_sizes": []},
        {"feed_forward_sizes": "ab"},
        {"deep_norm": "yes"},
        {"encoder_embed_dim": 10**7},
        {"num_buckets": None},
        {"max_distance": 10.5},
        {"conv_pos": True},
    ],
    ids=str,
)
def test_a_beats_of_odd_sizes(change: dict[str, Any], tmp_path: Path) -> None:
    file = beats_file(tmp_path)
    content = torch.load(file, weights_only=True)
    content["cfg"] = {**content["cfg"], **change}
    torch.save(content, file)
    with pytest.raises(WeightsMissingError, match=r"beats\.pt") as failure:
        load_network(file)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "null",
        '{"dataset": 3}',
        '{"held_out_fold": "x"}',
        '{"note": "\\u0000"}',
        '{"note": "\\ud800"}',
        '{"test_accuracy": NaN}',
        "[" * 100_000,
        '{"held_out_fold": 1e400}',
        '{"held_out_fold": ' + "9" * 30 + "}",
    ],
    ids=lambda text: text[:24],
)
def test_a_record_of_training_that_is_none(content: str, tmp_path: Path, engine: Any) -> None:
    """`networks add` reads training.json beside the weights, and keeps what it says."""
    from and_platform.services import networks

    folder = ast(tmp_path)
    (folder / "training.json").write_text(content)
    try:
        networks.add(engine, "net", str(folder))
    except AndpError as exc:
        assert "\n" not in str(exc)
        assert "training.json" in str(exc)
    else:
        json.dumps(networks.overview(engine))
