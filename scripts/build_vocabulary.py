"""Write the open acoustic vocabulary, `and_platform/_data/concepts/acoustic-vocabulary.csv`.

The phrases follow the patterns of Kumar, Raj and Nakashole (2017), "Discovering sound concepts and acoustic
relations in text": sound nouns ("thud"), sounding verbs ("meowing"), sources with their sound ("dog barking",
"creaking door") and sounds with a quality ("distant thunder"). Their list came from text corpora; ours comes
from WordNet 3.0 and the selectional preferences in `vocabulary_rules.toml`, which say what makes which sound.

Needs `pip install nltk wordfreq`, and WordNet's database files: the folder given by `--wordnet`, or else
those of the Debian package wordnet-base, which `apt-get download` puts into the cache folder once. The same
input gives the same file, byte for byte.

    python scripts/build_vocabulary.py --cache-dir .cache/wordnet
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nltk
from nltk.corpus.reader.wordnet import Synset, WordNetCorpusReader
from wordfreq import zipf_frequency

from and_platform.core.names import normalise

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "and_platform" / "_data" / "concepts" / "acoustic-vocabulary.csv"

# The reader wants WordNet's `lexnames` file, which the Debian package leaves out: the names of the
# lexicographer files in the order of their numbers (manual page lexnames(5WN)).
LEXNAMES = {
    "adj": "all pert",
    "adv": "all",
    "noun": "Tops act animal artifact attribute body cognition communication event feeling food group "
    "location motive object person phenomenon plant possession process quantity relation shape state "
    "substance time",
    "verb": "body change cognition communication competition consumption contact creation emotion motion "
    "perception possession social stative weather",
}


class WordNet(WordNetCorpusReader):
    """The reader without its map to other versions, for which it would look for NLTK's own data."""

    def map_wn(self, version: str = "wordnet") -> None:
        return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wordnet", type=Path, help="folder with WordNet 3.0's data.noun, index.noun, ...")
    parser.add_argument("--cache-dir", type=Path, default=Path(".cache/wordnet"), help="for prepared files")
    parser.add_argument("--rules", type=Path, default=HERE / "vocabulary_rules.toml")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)

    wordnet = open_wordnet(options.wordnet, options.cache_dir.resolve())
    rules = tomllib.loads(options.rules.read_text(encoding="utf-8"))
    phrases = build(wordnet, rules)
    with options.output.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "kind"])
        writer.writerows(sorted(phrases.items()))
    for kind, count in sorted(Counter(phrases.values()).items()):
        print(f"{count:6,} {kind}")
    print(f"{len(phrases):6,} phrases in {options.output}")
    return 0


def open_wordnet(source: Path | None, cache: Path) -> WordNet:
    """Prepare WordNet's files in the cache folder, fetching them where no folder is given, and open them."""
    cache.mkdir(parents=True, exist_ok=True)
    if source is None:
        source = cache / "package" / "usr" / "share" / "wordnet"
        if not source.is_dir():
            subprocess.run(["apt-get", "download", "wordnet-base"], cwd=cache, check=True)
            archive = max(cache.glob("wordnet-base_*.deb"))
            subprocess.run(["dpkg", "-x", str(archive), str(cache / "package")], check=True)
    folder = cache / "dict"
    shutil.copytree(source, folder, dirs_exist_ok=True)
    numbered = [f"{part}.{name}" for part, names in LEXNAMES.items() for name in names.split()] + ["adj.ppl"]
    lines = (f"{number:02}\t{name}\t0\n" for number, name in enumerate(numbered))
    (folder / "lexnames").write_text("".join(lines), encoding="ascii")
    nltk.data.path.insert(0, str(folder))  # NLTK reads from folders that are on its path alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no other languages: none are wanted
        return WordNet(str(folder), None)


def build(wordnet: WordNet, rules: dict[str, Any]) -> dict[str, str]:
    """Make the phrases of all four kinds.

    Returns
    -------
    dict
        Phrase to kind. What is of two kinds keeps the first of: sound noun, source+sound, quality+sound,
        sounding verb.

    Raises
    ------
    SystemExit
        The rules name a word that WordNet does not have, or drop what is not there.
    """
    problems: list[str] = []
    found: dict[str, tuple[str, str]] = {}  # by normalised phrase, so that "far-off" and "far off" are one

    def keep(kind: str, candidates: Iterable[str], drop: Iterable[str]) -> None:
        made = {normalise(phrase): (phrase, kind) for phrase in candidates}
        for unwanted in drop:
            if made.pop(normalise(unwanted), None) is None:
                problems.append(f"nothing to drop: {unwanted!r} ({kind})")
        for name, entry in made.items():
            found.setdefault(name, entry)

    nouns = rules["sound_nouns"]
    keep("sound noun", [*hyponyms(wordnet, nouns), *nouns["add"]], nouns["drop"])
    for source in rules["sources"]:
        members = {*hyponyms(wordnet, source), *source["add"]}
        drop = set(source.get("drop", ()))
        candidates = [fill(pattern, name) for pattern in source["patterns"] for name in sorted(members - drop)]
        keep("source+sound", candidates, sorted(drop - members))
    for group in rules["quality_groups"]:
        qualities = [adjective for name in group["qualities"] for adjective in rules["qualities"][name]]
        pairs = [f"{quality} {noun}" for quality in dict.fromkeys(qualities) for noun in group["nouns"]]
        keep("quality+sound", [*pairs, *group.get("add", ())], group.get("drop", ()))
    verbs = rules["sounding_verbs"]
    keep("sounding verb", [*gerunds(wordnet, verbs), *verbs["add"]], verbs["drop"])

    phrases = dict(found.values())
    known = set(rules["known"])
    words = sorted({word for phrase in phrases for word in phrase.replace("-", " ").split()} - known)
    problems += [f"not a word of WordNet: {word!r}" for word in words if not is_word(wordnet, word)]
    if problems:
        raise SystemExit("\n".join(problems))
    return phrases


def hyponyms(wordnet: WordNet, rule: dict[str, Any]) -> Iterator[str]:
    """Yield the one-word nouns at and below the rule's roots that are common enough.

    A noun counts where this is its first sense, unless the rule says `any_sense`: who reads "pipe" does not
    think of an instrument first.
    """
    for synset in below(wordnet.synset(name) for name in rule.get("roots", ())):
        for name in synset.lemma_names():
            plain = name.isalpha() and name.islower() and zipf_frequency(name, "en") >= rule["frequency"]
            if plain and (rule.get("any_sense") or wordnet.synsets(name, "n")[0] == synset):
                yield name


def gerunds(wordnet: WordNet, rule: dict[str, Any]) -> Iterator[str]:
    """Yield the gerunds of the one-word verbs below the rule's roots whose gerund is common enough."""
    for synset in below(wordnet.synset(name) for name in rule["roots"]):
        for name in synset.lemma_names():
            if name.isalpha() and name.islower():
                # Of the possible spellings the language uses one: "snapping", "creaking", "whining".
                spellings = (name + name[-1] + "ing", name.removesuffix("e") + "ing", name + "ing")
                common = [form for form in spellings if zipf_frequency(form, "en") >= rule["frequency"]]
                yield from common[:1]


def below(roots: Iterable[Synset]) -> list[Synset]:
    """List the synsets at and below the roots, in a fixed order."""
    found = {synset for root in roots for synset in (root, *root.closure(lambda synset: synset.hyponyms()))}
    return sorted(found, key=lambda synset: synset.name())


def fill(pattern: str, source: str) -> str:
    """Put the source into the pattern, with `an` where it starts with a vowel."""
    if " a {}" in pattern and source[0] in "aeiou":
        pattern = pattern.replace(" a {}", " an {}")
    return pattern.format(source)


def is_word(wordnet: WordNet, word: str) -> bool:
    """Whether WordNet has the word, in any inflection."""
    return wordnet.morphy(word.removesuffix("'s")) is not None


if __name__ == "__main__":
    sys.exit(main())
