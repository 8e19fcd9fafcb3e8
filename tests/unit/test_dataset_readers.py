from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from and_platform.backends.datasets import LEAVES_ROOT, Item, Source, read
from and_platform.errors import InputError, ManifestError


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def test_folder_takes_the_first_level_as_label_and_sorts_by_path(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.wav", "dog/a.FLAC", "cat/indoors/late/c.mp3", "loose.ogg", "dog/notes.txt", ".hidden/x.wav")
    touch(tmp_path, "dog/._b.wav")
    listing = read(Source("folder", tmp_path))
    assert listing.items == [
        Item("cat/indoors/late/c.mp3", ("cat",)),
        Item("dog/a.FLAC", ("dog",)),
        Item("dog/b.wav", ("dog",)),
        Item("loose.ogg"),
    ]
    assert (listing.root, listing.name, listing.problems) == (tmp_path, tmp_path.name, [])


def test_folder_follows_links_once(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/a.wav", "here/b.wav")
    (tmp_path / "here" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here")
    source = Source("folder", tmp_path / "here", allow_outside=True)
    assert [item.path for item in read(source).items] == ["b.wav", "linked/a.wav"]


def test_folder_name_that_is_not_unicode_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    touch(tmp_path, os.fsdecode(b"b\xff.wav"))
    listing = read(Source("folder", tmp_path))
    assert [item.path for item in listing.items] == ["a.wav"]
    ((unit, reason),) = listing.problems
    assert unit == "b\\udcff.wav"
    assert reason.startswith("not text")


@pytest.mark.parametrize(
    ("files", "message"),
    [((), "holds no sound files"), (("a.m4a", "b.txt"), "has 2 other files, e.g. ")],
)
def test_folder_without_sounds(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=message):
        read(Source("folder", tmp_path))


def test_folder_that_is_missing_or_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    with pytest.raises(InputError, match="there is no folder"):
        read(Source("folder", tmp_path / "none"))
    with pytest.raises(InputError, match="is not a folder"):
        read(Source("folder", tmp_path / "a.wav"))


def test_csv_manifest(tmp_path: Path) -> None:
    file = write(
        tmp_path / "birds.csv",
        "\ufeffPath,Label,labels,caption,fold,licence,Note",
        'z.wav,robin,"bird; song ;robin",,2,CC0,',
        "sub/../a.wav,,,A bird sings.,1.0,,  kept ",
        f'{tmp_path}/b.wav,,"[""x;y"", ""z""]",,,,',
    )
    listing = read(Source("manifest", file))
    assert listing.items == [
        Item("a.wav", (), 1, "A bird sings.", {"Note": "kept"}),
        Item("b.wav", ("x;y", "z")),
        Item("z.wav", ("robin", "bird", "song"), 2, None, {"licence": "CC0"}),
    ]
    assert (listing.root, listing.name) == (tmp_path, "birds")


def test_manifest_formats_agree(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"path": "b.wav", "labels": ["x", "y"], "fold": 1, "caption": "One.", "rating": 4.5, "more": {"a": [1, None]}},
        {"path": "a.wav", "labels": ["x"], "fold": None, "caption": None, "rating": None, "more": None},
    ]
    jsonl = write(tmp_path / "m.jsonl", *map(json.dumps, rows), "")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    expected = [
        Item("a.wav", ("x",)),
        Item("b.wav", ("x", "y"), 1, "One.", {"rating": 4.5, "more": {"a": [1, None]}}),
    ]
    assert read(Source("manifest", jsonl)).items == expected
    assert read(Source("manifest", tmp_path / "m.parquet")).items == expected
    tsv = write(tmp_path / "m.tsv", "path\tlabels", "a.wav\tx")
    assert read(Source("manifest", tsv)).items == [Item("a.wav", ("x",))]


def test_rows_that_cannot_be_used_are_problems_and_the_rest_goes_in(tmp_path: Path) -> None:
    file = write(
        tmp_path / "manifest.jsonl",
        '{"path": "../secret.wav"}',
        '{"path": "/etc/passwd"}',
        '{"path": "a/../../b.wav"}',
        '{"path": "ok.wav"}',
        '{"path": "./ok.wav"}',
        '{"path": ""}',
        '{"path": "f.wav", "fold": 1.5}',
        '{"path": "n.wav", "caption": "a\\u0000b"}',
        '{"path": "s.wav", "labels": ["\\ud800"]}',
        '{"path": "l.wav", "labels": "[1,"}',
    )
    listing = read(Source("manifest", file))
    assert [item.path for item in listing.items] == ["ok.wav"]
    assert listing.name == tmp_path.name  # 'manifest' says nothing
    reasons = dict(listing.problems)
    assert [unit for unit, reason in listing.problems if reason == LEAVES_ROOT] == [
        "../secret.wav", "/etc/passwd", "a/../../b.wav",
    ]  # fmt: skip
    assert {unit: reason.split(":")[0] for unit, reason in reasons.items() if reason != LEAVES_ROOT} == {
        "ok.wav (again)": "listed twice",
        "line 6": "no path",
        "f.wav": "fold",
        "n.wav": "not text",
        "s.wav": "not text",
        "l.wav": "labels",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "file,label\na.wav,x\n", r"line 2: no column 'path'; the columns are file, label"),
        ("m.csv", "path,label\n", "has no rows"),
        ("m.csv", "path,label\na.wav,x,y\n", "line 2: more fields than columns"),
        ("m.csv", 'path,label\n"a.wav,x\n', "not valid CSV"),
        ("m.jsonl", '{"path": "a.wav"}\n{"path"\n', "line 2: not valid JSON"),
        ("m.jsonl", "[1]\n", "line 1: expected an object"),
        ("m.parquet", "PAR1 no", "is not a Parquet file"),
        ("m.xlsx", "x", "a manifest ends in .csv"),
        ("m", "x", "not in nothing"),
    ],
)
def test_manifest_that_cannot_be_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=message):
        read(Source("manifest", tmp_path / name))


def test_manifest_that_is_not_utf8_or_missing(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("path,label\na.wav,Vögel\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="not UTF-8"):
        read(Source("manifest", tmp_path / "m.csv"))
    with pytest.raises(ManifestError, match="there is no file"):
        read(Source("manifest", tmp_path / "none.csv"))


def test_manifest_root(tmp_path: Path) -> None:
    file = write(tmp_path / "lists" / "m.csv", "path", "../audio/a.wav")
    (tmp_path / "audio").mkdir()
    assert read(Source("manifest", file)).problems == [("../audio/a.wav", LEAVES_ROOT)]
    write(file, "path", f"{tmp_path}/audio/a.wav", "b.wav")
    listing = read(Source("manifest", file, tmp_path / "audio"))
    assert [item.path for item in listing.items] == ["a.wav", "b.wav"]
    assert listing.root == tmp_path / "audio"


def test_esc50(tmp_path: Path) -> None:
    touch(tmp_path, "audio/1-100032-A-0.wav")
    write(
        tmp_path / "meta/esc50.csv",
        "filename,fold,target,category,esc10,src_file,take",
        "1-17367-A-10.wav,1,10,rain,False,17367,A",
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
    )
    listing = read(Source("esc50", tmp_path))
    assert listing.name == "esc50"
    assert listing.items[0] == Item(
        "audio/1-100032-A-0.wav", ("dog",), 1, None, {"target": 0, "esc10": True, "source": "100032", "take": "A"}
    )
    assert [item.labels for item in listing.items] == [("dog",), ("rain",)]


def test_urbansound8k(tmp_path: Path) -> None:
    touch(tmp_path, "audio/fold5/100032-3-0-0.wav")
    write(
        tmp_path / "metadata/UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        "100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark",
    )
    extra = {"target": 3, "source": "100032", "start_s": 0.0, "end_s": 0.317551, "salience": 1}
    assert read(Source("urbansound8k", tmp_path)).items == [
        Item("audio/fold5/100032-3-0-0.wav", ("dog_bark",), 5, None, extra)
    ]


@pytest.mark.parametrize("place", ["genres", "genres_original", "Data/genres_original"])
def test_gtzan(tmp_path: Path, place: str) -> None:
    touch(tmp_path, f"{place}/rock/rock.00001.wav", f"{place}/blues/blues.00000.au", "features_30_sec.csv")
    assert read(Source("gtzan", tmp_path)).items == [
        Item(f"{place}/blues/blues.00000.au", ("blues",)),
        Item(f"{place}/rock/rock.00001.wav", ("rock",)),
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("esc50", "expected meta/esc50.csv and audio/"),
        ("urbansound8k", "expected metadata/UrbanSound8K.csv and audio/fold1 to audio/fold10"),
        ("gtzan", "expected genres/<genre>/"),
    ],
)
def test_wrong_layout_says_what_was_expected(tmp_path: Path, kind: str, expected: str) -> None:
    touch(tmp_path, "a.wav")
    with pytest.raises(InputError, match=expected):
        read(Source(kind, tmp_path))


def test_published_table_with_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    write(tmp_path / "meta/esc50.csv", "filename,fold,category", "a.wav,1,dog")
    with pytest.raises(ManifestError, match="line 2: the column 'target' is missing"):
        read(Source("esc50", tmp_path))
