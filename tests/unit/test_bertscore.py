"""BERTScore, with a BERT of two layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from and_platform.backends import bertscore
from and_platform.errors import ConfigError, MissingExtraError, WeightsMissingError
from tests import tiny

needed = pytest.mark.skipif(not bertscore.installed(), reason="the package bert-score is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("bert"))


@needed
def test_the_same_text_scores_one_and_another_less(model: Path) -> None:
    scorer = bertscore.BertScore(str(model), 2, device="cpu")
    same, other = scorer.score(["a dog barks", "a dog barks"], ["a dog barks", "rain falls on a roof"])
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.99
    assert scorer.score([], []).shape == (0,)


@needed
def test_f1_is_what_the_token_vectors_give(model: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, bert = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()

    def tokens(text: str) -> torch.Tensor:
        with torch.no_grad():
            states = bert(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0]
        return torch.nn.functional.normalize(states, dim=-1)

    candidate, reference = tokens("a dog barks"), tokens("rain falls on a roof")
    # The first and the last token frame a text and do not count.
    cosine = (candidate @ reference.T)[1:-1, 1:-1]
    precision, recall = cosine.max(dim=1).values.mean(), cosine.max(dim=0).values.mean()
    expected = float(2 * precision * recall / (precision + recall))
    (f1,) = bertscore.BertScore(str(model), 1, device="cpu").score(["a dog barks"], ["rain falls on a roof"])
    assert f1 == pytest.approx(expected, abs=1e-4)


@needed
def test_a_text_longer_than_the_model_reads_is_cut(model: Path) -> None:
    scorer = bertscore.BertScore(str(model), device="cpu")
    assert np.isfinite(scorer.score(["dog " * 400], ["rain " * 400])).all()


@needed
def test_what_cannot_be_used_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 2 layers, not 3; give --bertscore-layers 1 to 2"):
        bertscore.BertScore(str(model), 3)
    with pytest.raises(WeightsMissingError, match="there is no model"):
        bertscore.BertScore(str(tmp_path / "none"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bertscore, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"and-platform\[study\]"):
        bertscore.BertScore("any")
