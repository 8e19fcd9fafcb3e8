"""Networks from functions of the user's: by file, by module, and where modules are looked for meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from and_platform.backends.networks import load_network, stored_location
from and_platform.errors import BackendError, ConfigError, WeightsMissingError

NET = """
import torch
from torch import nn
import beside

class Net(nn.Module):
    rate = beside.RATE
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
    def forward(self, x):
        return self.head(x[:, :4])

def build():
    import beside_later
    torch.manual_seed(beside_later.SEED)
    return Net()
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a factory and what it imports, which the tests run beside."""
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "my_net.py").write_text(NET)
    (folder / "beside.py").write_text("RATE = 100\n")
    (folder / "beside_later.py").write_text("SEED = 3\n")
    for name in ("beside", "beside_later", "my_net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in {"my_net", "beside", "beside_later", "pack", "torchaudio"} or name.startswith(
            "andp_factory"
        ):
            del sys.modules[name]
    assert not [folder for folder in sys.path if folder.endswith("/nets")], "the folder is off the search path again"


@pytest.mark.parametrize(
    "how", ["nets/my_net.py:build", "./nets/my_net.py:build", "{}/my_net.py:build", "nets/../nets/my_net.py:build"]
)
def test_a_file_names_its_factory(nets: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = how.format(nets)
    location = stored_location(source)
    assert location == f"{nets / 'my_net.py'}:build"
    monkeypatch.chdir("/")
    network = load_network(location)
    assert network.rate == 100
    assert network.architecture == "Net"
    assert network.parameters == {"factory": "my_net:build"}


def test_a_module_of_the_working_folder_is_found_from_elsewhere(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nets)
    location = stored_location("my_net:build")
    assert location == f"{nets / 'my_net.py'}:build"
    here = load_network("my_net:build")
    monkeypatch.chdir("/")
    elsewhere = load_network(location)
    assert here.revision == elsewhere.revision
    assert here.parameters == elsewhere.parameters == {"factory": "my_net:build"}


def test_a_module_of_the_python_path_is_stored_by_its_name(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(nets)])
    before = list(sys.path)
    assert stored_location("my_net:build") == "my_net:build"
    assert load_network("my_net:build").rate == 100
    assert sys.path == before


def test_a_module_in_a_package(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = nets / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "relative.py").write_text("RATE = 7\n")
    (package / "inner.py").write_text(
        "import torch\nfrom torch import nn\nfrom .relative import RATE\n"
        "def prepare(waveforms): return torch.zeros(len(waveforms), 1, 9)\n"
        "def build():\n    net = nn.Sequential(nn.Conv1d(1, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))\n"
        "    net.rate, net.prepare = RATE, prepare\n    return net\n"
    )
    monkeypatch.chdir(nets)
    assert stored_location("pack.inner:build") == f"{package / 'inner.py'}:build"
    monkeypatch.chdir("/")
    assert load_network(f"{package / 'inner.py'}:build").rate == 7


def test_a_file_hides_no_library(nets: Path) -> None:
    (nets / "torch.py").write_text((nets / "my_net.py").read_text())
    network = load_network(f"{nets / 'torch.py'}:build")
    assert network.rate == 100
    assert sys.modules["torch"] is torch


def test_two_files_of_one_name(nets: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "my_net.py").write_text(NET.replace("beside.RATE", "50").replace("nn.Linear(4, 2)", "nn.Linear(4, 3)"))
    first, second = (load_network(f"{folder / 'my_net.py'}:build") for folder in (nets, other))
    assert (first.rate, second.rate) == (100, 50)


def test_what_a_network_imports_when_it_runs(nets: Path) -> None:
    """It is tried when it is loaded: what it imports then stays; anything later is not looked for in its folder."""
    late = "import beside_later; exec('import beside_run' if x.shape[1] == 5 else ''); return self.head"
    (nets / "my_net.py").write_text(
        NET.replace("    import beside_later\n", "").replace("beside_later.SEED", "3").replace("return self.head", late)
    )
    (nets / "beside_run.py").write_text("")
    network = load_network(f"{nets / 'my_net.py'}:build")
    assert network.model(torch.zeros(1, 4)).shape == (1, 2)
    with pytest.raises(ModuleNotFoundError, match="beside_run"):
        network.model(torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        ("import nothing_of_that_name\n", ConfigError, "nothing_of_that_name"),
        ("raise ValueError('first\\nsecond')\n", BackendError, "ValueError: first"),
        ("def other(): pass\n", ConfigError, "has no 'build'"),
        ("build = 3\n", BackendError, "TypeError"),
        ("def build(): raise KeyError\n", BackendError, "KeyError"),
        ("def build(): return 3\n", ConfigError, "returned a int"),
        ("def build(: pass\n", BackendError, "SyntaxError"),
        ("from torch import nn\ndef build(): return nn.Linear(2, 2), {'rate': 'fast'}\n", ConfigError, "ValueError"),
        ("from torch import nn\ndef build(): return nn.Linear(2, 2), 3\n", (ConfigError, BackendError), "returned|int"),
        (
            "from torch import nn\ndef build(): return nn.Linear(2, 2), {'rate': 1, 'pooling': 3}\n",
            ConfigError,
            "pooling|'3'|3",
        ),
        (
            "from torch import nn\ndef build(): return nn.Linear(2, 2), {'rate': 1, 'classes': 3}\n",
            ConfigError,
            "cannot be used",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(nets: Path, code: str, kind: type[Exception], told: str) -> None:
    (nets / "my_net.py").write_text(code)
    with pytest.raises(kind, match=told) as failure:
        load_network(f"{nets / 'my_net.py'}:build")
    assert "\n" not in str(failure.value)


def test_a_file_without_a_function_says_how_to_name_one(nets: Path) -> None:
    with pytest.raises(ConfigError, match=r"nets/my_net\.py:factory"):
        load_network("nets/my_net.py")
    with pytest.raises(ConfigError, match="there is no file"):
        load_network("nets/none.py:build")
    with pytest.raises(ConfigError, match=r"no_such_module_here.*FILE\.py:factory"):
        load_network("no_such_module_here:build")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors", ".onnx", ".bin", ".ckpt", ".txt"])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_of_weights_names_both_ways_in(tmp_path: Path, suffix: str, there: bool) -> None:
    file = tmp_path / f"weights{suffix}"
    if there:
        torch.save({"layer.weight": torch.zeros(2, 2)}, file)
    elif suffix in (".pt", ".pth", ".txt"):
        pytest.skip("a BEATs that is missing, or no file of weights")
    with pytest.raises(WeightsMissingError) as failure:
        load_network(str(file))
    told = str(failure.value)
    assert "FILE.py:factory" in told
    assert "directory of a checkpoint" in told
    assert "\n" not in told
