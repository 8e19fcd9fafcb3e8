from __future__ import annotations

import pytest

from and_platform.core.terms import Pos, Term, extract_terms, stop_words

A, N, V, P = Pos.ADJECTIVE, Pos.NOUN, Pos.VERB, Pos.PREPOSITION


def tagged(text: str) -> list[tuple[str, str, str]]:
    """ "dogs/dog/NNS is/be/VBZ": text, lemma and tag of each token; without a lemma the text is its own."""
    parts = [token.split("/") for token in text.split()]
    return [(part[0], part[1] if len(part) > 2 else part[0].lower(), part[-1]) for part in parts]


def terms(text: str, **options: int) -> list[tuple[str, Pos]]:
    return [(term.term, term.pos) for term in extract_terms(tagged(text), **options)]


def test_each_part_of_speech() -> None:
    found = terms("A/DT high-pitched/JJ louder/loud/JJR muffled/muffle/VBN Dogs/dog/NNS barks/bark/VBZ near/IN rain/NN")
    assert found == [
        ("high-pitched", A),
        ("loud", A),
        ("muffled", A),
        ("dog", N),
        ("bark", V),
        ("near", P),
        ("rain", N),
    ]


def test_forms_in_ing_stay_whatever_the_tag() -> None:
    assert terms("clapping/clap/VBG and/CC sneezing/sneezing/NN") == [("clapping", V), ("sneezing", N)]


def test_distinct_terms_are_counted_by_part_of_speech() -> None:
    found = extract_terms(tagged("Bark/NN barks/bark/NNS bark/VB"))
    assert found == [Term("bark", N, 2), Term("bark", V, 1)]


@pytest.mark.parametrize("no", ["no/DT", "not/RB", "n't/not/RB", "No/DT"])
def test_four_tokens_after_a_negation_are_no_adjectives(no: str) -> None:
    assert terms(f"{no} sharp/JJ ,/, sudden/JJ harsh/JJ mellow/JJ") == [("mellow", A)]
    assert terms(f"{no} sharp/JJ sudden/JJ", window=1) == [("sudden", A)]


def test_a_negation_takes_no_nouns_and_ends_with_its_sentence() -> None:
    assert terms("no/DT noise/NN ./. Sharp/JJ") == [("noise", N), ("sharp", A)]


def test_stop_words_quantities_letters_and_figures_go() -> None:
    assert terms("is/be/VBZ other/JJ several/JJ r/NN 3/JJ 2-second/JJ five/NN clips/clip/NNS") == [("clip", N)]


def test_stop_words_that_name_sounds_stay() -> None:
    assert terms("fire/NN thin/JJ cry/NN") == [("fire", N), ("thin", A), ("cry", N)]
    assert {"the", "of", "is"} <= stop_words()


def test_prepositions_are_no_conjunctions() -> None:
    assert terms("while/IN of/IN because/IN With/with/IN") == [("of", P), ("with", P)]


def test_of_nothing() -> None:
    assert extract_terms([]) == []
