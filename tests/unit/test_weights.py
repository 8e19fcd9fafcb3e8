"""Models are found in folders and on a hub, known by their content, and read without running anything."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from and_platform.backends.weights import find_weights, read_pickle
from and_platform.errors import WeightsMissingError
from tests import hub

FIND = """
import sys
from and_platform.backends.weights import find_weights
from and_platform.errors import WeightsMissingError
try:
    found = find_weights(sys.argv[1])
except WeightsMissingError as exc:
    sys.exit(f"missing: {exc}")
print(found.revision, found.origin, *sorted(file.name for file in found.path.iterdir()))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights twice, as a hub often has them, and files that are not read."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    tensors = {"weight": torch.arange(6.0)}
    save_file(tensors, folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "README.md").write_text("A model.")
    (folder / "model.onnx").write_bytes(b"other format")
    return folder


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[tuple[str, list[str]]]:
    with hub.serving({"someone/tiny": model}) as there:
        yield there


def find(source: str, cache: Path, address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads its environment once."""
    told = {"HF_HOME": str(cache), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", **environment}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", FIND, source], capture_output=True, text=True, env=inherited | told, timeout=120
    )  # fmt: skip


class TestFromTheHub:
    def test_safetensors_alone_and_the_revision_of_the_same_files_in_a_folder(
        self, served: tuple[str, list[str]], model: Path, tmp_path: Path
    ) -> None:
        address, asked = served
        asked.clear()
        said = find("someone/tiny", tmp_path, address)
        assert said.returncode == 0, said.stderr
        revision, origin, *files = said.stdout.split()
        assert origin == f"someone/tiny@{hub.COMMIT}"
        assert files == ["README.md", "config.json", "model.safetensors"]
        assert not any(
            "pytorch_model.bin" in path or "onnx" in path for path in asked if path.startswith("GET /someone")
        )
        assert find_weights(str(model)).revision == revision

    def test_a_pinned_revision(self, served: tuple[str, list[str]], tmp_path: Path) -> None:
        address, asked = served
        asked.clear()
        assert find("someone/tiny@v1", tmp_path, address).returncode == 0
        assert any("/revision/v1" in path for path in asked)

    def test_what_is_cached_is_found_offline_and_without_the_hub(
        self, served: tuple[str, list[str]], tmp_path: Path
    ) -> None:
        address, asked = served
        online = find("someone/tiny", tmp_path, address)
        asked.clear()
        offline = find("someone/tiny", tmp_path, address, HF_HUB_OFFLINE="1")
        gone = find("someone/tiny", tmp_path, "http://127.0.0.1:9")
        assert online.stdout == offline.stdout == gone.stdout != ""
        assert asked == []

    @pytest.mark.parametrize(
        ("source", "offline"), [("someone/typo", "0"), ("someone/tiny", "1"), ("someone/tiny@v9", "0")]
    )
    def test_what_is_not_there_says_what_to_do(
        self, served: tuple[str, list[str]], tmp_path: Path, source: str, offline: str
    ) -> None:
        said = find(source, tmp_path, served[0], HF_HUB_OFFLINE=offline)
        name = source.partition("@")[0]
        assert said.returncode == 1
        assert re.search(rf"missing: the model '{name}' is neither .*hf download {name} --local-dir DIR", said.stderr)

    def test_half_a_download_is_not_here(self, served: tuple[str, list[str]], tmp_path: Path, model: Path) -> None:
        address, _ = served
        told = "from and_platform.backends.weights import is_here; print(is_here('someone/tiny'), is_here('someone/tiny@v9'))"

        def ask() -> str:
            return subprocess.run(
                [sys.executable, "-c", told], capture_output=True, text=True, env=os.environ | {"HF_HOME": str(tmp_path)},
                timeout=120,
            ).stdout  # fmt: skip

        assert ask() == "False False\n"
        assert find("someone/tiny", tmp_path, address).returncode == 0
        assert ask() == "True False\n"
        (weights,) = tmp_path.rglob("model.safetensors")
        weights.unlink()
        assert ask() == "False False\n"


class TestFromAFolder:
    def test_only_what_is_read_counts(self, model: Path, tmp_path: Path) -> None:
        before = find_weights(str(model))
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("config.json", "model.safetensors"):
            (copy / name).write_bytes((model / name).read_bytes())
        assert find_weights(str(copy)).revision == before.revision
        assert find_weights(str(copy)).origin == str(copy)
        (copy / "config.json").write_text('{"model_type": "other"}')
        assert find_weights(str(copy)).revision != before.revision

    def test_a_pickle_counts_where_it_is_all_there_is(self, model: Path, tmp_path: Path) -> None:
        for name in ("config.json", "pytorch_model.bin"):
            (tmp_path / name).write_bytes((model / name).read_bytes())
        before = find_weights(str(tmp_path)).revision
        torch.save({"weight": torch.zeros(6)}, tmp_path / "pytorch_model.bin")
        assert find_weights(str(tmp_path)).revision != before

    @pytest.mark.parametrize("source", ["./none", "/none/at/all", "~/none", "no such model", "a/b/c", "https://x/y"])
    def test_neither_path_nor_id(self, source: str) -> None:
        with pytest.raises(WeightsMissingError, match="there is no model at"):
            find_weights(source)

    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissingError, match="holds no model"):
            find_weights(str(tmp_path))


class Trap:
    """Unpickled without care, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


class TestPickles:
    def test_tensors_and_plain_values(self, tmp_path: Path) -> None:
        torch.save({"cfg": {"layers": 2}, "model": {"w": torch.ones(2)}}, tmp_path / "a.pt")
        read = read_pickle(tmp_path / "a.pt")
        assert read["cfg"] == {"layers": 2}
        assert torch.equal(read["model"]["w"], torch.ones(2))

    def test_code_is_never_run(self, tmp_path: Path) -> None:
        torch.save({"model": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
        for name in ("trap.pt", "plain.pt"):
            with pytest.raises(WeightsMissingError, match="holds no plain checkpoint"):
                read_pickle(tmp_path / name)
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 broken"])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(WeightsMissingError, match=r"a\.pt holds no plain checkpoint"):
            read_pickle(tmp_path / "a.pt")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(WeightsMissingError, match=r"cannot read .*none\.pt"):
            read_pickle(tmp_path / "none.pt")
