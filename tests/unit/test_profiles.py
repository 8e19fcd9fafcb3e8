"""Profiles name models that the platform knows, and tell the truth about what is here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from and_platform.backends import registry
from and_platform.config import settings
from and_platform.core.prompts import CAPTION_PROMPT
from and_platform.errors import NotFoundError
from and_platform.services import profiles
from and_platform.services.dissect import Options
from and_platform.services.profiles import Need

ROLES = {"sentence_encoder": "encoder", "text_encoder": "encoder", "audio_encoder": "encoder"}
ROLES |= {name: name for name in ("captioner", "llm", "tagger")}


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ANDP_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize("name", profiles.names())
class TestEach:
    def test_its_options_are_those_of_a_dissection(self, name: str) -> None:
        Options.from_mapping(profiles.load(name).dissect)

    def test_its_models_are_in_the_registry_and_among_its_needs(self, name: str) -> None:
        profile = profiles.load(name)
        needed = {part.strip(): need for need in profile.needs for part in need.part.split(",")}
        for option, role in ROLES.items():
            if option not in profile.dissect:
                continue
            backend, _, argument = str(profile.dissect[option]).partition(":")
            if role == "captioner" and backend == "auto":
                continue
            known = {info.name: info for info in registry.available(role)}
            assert backend in known
            need = needed[option]
            assert argument == (need.path or need.source or argument)
            if known[backend].extra:
                assert need.extra == known[backend].extra

    def test_every_need_has_size_licence_and_reason(self, name: str) -> None:
        for need in profiles.load(name).needs:
            assert need.gigabytes >= 0
            assert need.licence
            assert need.why
            assert need.get


def test_what_the_paper_did() -> None:
    profile = profiles.load("paper")
    options = Options.from_mapping(profile.dissect)
    assert (options.top_k, options.threshold, options.methods) == (5, 0.7, ("db", "tab", "icl"))
    assert options.captioner_options["prompt"] == CAPTION_PROMPT
    assert (options.llm_options["temperature"], options.llm_options["top_p"]) == (1.0, 1.0)
    assert profile.counts == {"clips": 2000, "concepts": 50, "layers": 37, "neurons": 55346}


def test_offline_is_what_happens_without_a_profile() -> None:
    said = Options.from_mapping(profiles.load("offline").dissect)
    default = Options()
    for name in profiles.load("offline").dissect:
        if name not in ("summariser", "judge"):  # None means these two, where no LLM is set
            assert getattr(said, name) == getattr(default, name)
    assert (said.summariser, said.judge, default.llm) == ("extractive", "anchor", None)


def test_the_folder_of_models_is_filled_in(tmp_path: Path) -> None:
    profile = profiles.load("paper")
    captioner = next(need for need in profile.needs if need.part == "captioner")
    assert captioner.path == str(tmp_path / "models" / "salmonn-13b")
    assert captioner.here is False
    Path(captioner.path).mkdir(parents=True)
    assert captioner.here is True
    network = next(need for need in profile.needs if need.part == "network")
    assert f"andp networks train {tmp_path / 'models'}/ast-esc50 --from" in network.get


def test_what_is_here() -> None:
    need = Need("tagger", "a model", 0.1, 0.1, "MIT", "because")
    assert need.here is None
    assert Need(**{**vars(need), "package": "numpy"}).here is True
    assert Need(**{**vars(need), "package": "no_such_package"}).here is False
    assert Need(**{**vars(need), "source": "nobody/nothing"}).here is False
    assert Need(**{**vars(need), "source": "nobody/nothing"}).get.startswith("hf download nobody/nothing")


def test_unknown() -> None:
    with pytest.raises(NotFoundError, match="no profile 'papre'; there are: paper"):
        profiles.load("papre")


def test_a_profiles_options_do_not_go_to_another_model() -> None:
    current = profiles.load("current")
    assert profiles.settle(current).llm_options["structured"] is True
    other = profiles.settle(current, {"llm": "openai:m@http://localhost:1/v1"}, {"llm_options": {"seed": 3}})
    assert other.llm_options == {"seed": 3}
    assert other.captioner_options == {"prompt": ""}
    assert profiles.settle(current, {"captioner": "audio-lm:some/other"}).captioner_options == {}


def test_tables_of_options_are_joined() -> None:
    settled = profiles.settle(profiles.load("paper"), {"llm_options": {"chunk": 4}}, {"llm_options": {"seed": 1}})
    assert settled.llm_options == {"temperature": 1.0, "top_p": 1.0, "seed": 1, "chunk": 4}
