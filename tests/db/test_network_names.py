"""Names of networks: new ones have no slash, old ones keep theirs; locations are found again from any folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from and_platform.errors import InputError
from and_platform.services import networks

ROOT = Path(__file__).parents[2]
Andp = Callable[..., subprocess.CompletedProcess[str]]

NET = """
from torch import nn
import torch

def build():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 100)), nn.Linear(100, 2))
    return net, {"rate": 100, "prepare": lambda waveforms: torch.zeros(len(waveforms), 100)}
"""


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("MIT/ast", "ast"),
        ("a\\b", "b"),
        ("-x", "x"),
        ("", "my-network"),
        ("/", "my-network"),
        ("a\nb", "ab"),
        (".", "my-network"),
    ],
)
def test_a_new_network_has_no_slash_in_its_name(engine: sa.Engine, name: str, instead: str) -> None:
    with pytest.raises(InputError, match=f"take '{instead}'") as failure:
        networks.add(engine, name, "tests.hand_network:build")
    assert "\n" not in str(failure.value)
    assert networks.overview(engine) == []


def test_a_name_is_checked_before_a_training(engine: sa.Engine, andp: Andp, tmp_path: Path) -> None:
    done = andp("networks", "train", str(tmp_path / "out"), "--add", "mine/ast", check=False)
    assert done.returncode == 2
    assert "take 'ast'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_old_network_keeps_its_slash(engine: sa.Engine, andp: Andp) -> None:
    networks.add(engine, "plain", "tests.hand_network:build")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE networks SET name = 'owner/old'"))
    assert networks.add(engine, "owner/old", "tests.hand_network:build").name == "owner/old"  # the same again
    assert "owner/old" in andp("networks", "list").stdout
    assert "hidden" in andp("networks", "show", "owner/old").stdout
    # Every command looks it up by the name as it is; what is missing is something else.
    for command, told in (
        (("dissect", "owner/old", "--dry-run"), "owner/old"),
        (("neuron", "owner/old", "hidden#0"), "no complete dissection of 'owner/old'"),
        (("neurons", "--network", "owner/old", "--concept", "a"), "no complete dissection of 'owner/old'"),
        (("report", "owner/old", "-o", "unused"), "owner/old"),
        (("eval", "last-layer", "owner/old"), "owner/old"),
        (("unlearn", "plans", "owner/old"), ""),
        (("features", "show", "owner/old"), ""),
        (("interpretability", "show", "owner/old"), ""),
        (("study", "list", "--network", "owner/old"), ""),
    ):
        done = andp(*command, check=False)
        assert "Traceback" not in done.stderr
        assert "no network 'owner/old'" not in done.stdout + done.stderr, command
        assert told in done.stdout + done.stderr, command
    andp("networks", "drop", "owner/old")


def test_a_network_of_a_file_is_loaded_from_another_folder(
    engine: sa.Engine, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "my_net.py").write_text(NET)
    andp = Path(sys.executable).parent / "andp"

    def add(name: str, location: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        given = {**environment, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [andp, "networks", "add", name, location], cwd=cwd, env=given, capture_output=True, text=True, check=False
        )

    for name, location, cwd in (
        ("relative", "nets/my_net.py:build", tmp_path),
        ("module", "my_net:build", folder),
        ("dotted", "./my_net.py:build", folder),
    ):
        done = add(name, location, cwd)
        assert done.returncode == 0, done.stderr
    with engine.connect() as connection:
        locations = set(connection.execute(sa.text("SELECT location FROM networks")).scalars())
        sources = set(connection.execute(sa.text("SELECT source FROM networks")).scalars())
    assert locations == {f"{folder / 'my_net.py'}:build"}
    assert sources == {"factory"}
    # Another command, in another folder where a module of that name lies, too.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "my_net.py").write_text("raise RuntimeError('planted')\n")
    code = (
        "from and_platform import db\nfrom and_platform.services import networks\n"
        "engine = db.connect()\n"
        "with db.reading(engine) as session: network = networks.find(session, 'module')\n"
        "print(networks.load(network).n_parameters)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=elsewhere,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "202\n", done.stderr
