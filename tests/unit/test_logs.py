"""The log: what a line says, how it looks, and what it must not hold."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from and_platform import logs
from and_platform.errors import ConfigError

ROOT = Path(__file__).parents[2]
log = logging.getLogger("andp.test")


@pytest.fixture(autouse=True)
def _root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(format: logs.Format, write: Callable[[], None], level: str = "INFO", worker: str | None = None) -> list[str]:
    out = io.StringIO()
    logs.configure(level, format, worker=worker, stream=out)
    write()
    return out.getvalue().splitlines()


def objects(write: Callable[[], None], worker: str | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines("json", write, worker=worker)]


def test_a_json_line_says_what_it_is_about() -> None:
    def write() -> None:
        with logs.bound(run=7, stage="caption"):
            with logs.bound(unit=12):
                log.info("%d clips of %s", 3, "größe")
            log.warning("between")
        log.info("outside")

    inner, between, outside = objects(write, worker="gpu@host")
    at = datetime.fromisoformat(inner.pop("time"))
    assert at.utcoffset() == UTC.utcoffset(None)
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert inner == {
        "level": "INFO", "logger": "andp.test", "message": "3 clips of größe",
        "run": 7, "stage": "caption", "unit": 12, "worker": "gpu@host",
    }  # fmt: skip
    assert (between["run"], between["stage"], "unit" in between) == (7, "caption", False)
    assert outside.keys() == {"time", "level", "logger", "message", "worker"}


def test_an_exception_is_in_its_line() -> None:
    def write() -> None:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("no answer", extra={"prompt": 4})

    (line,) = objects(write)
    assert line["message"] == "no answer" and line["prompt"] == 4
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("ValueError: two\nlines")


def test_a_text_line_is_for_people() -> None:
    def write() -> None:
        log.info("plain")
        with logs.bound(run=7, stage="caption", unit=12):
            log.info("about")

    assert lines("text", write) == ["INFO andp.test: plain", "INFO andp.test [run 7 caption unit 12]: about"]
    (timed, _) = lines("text", write, worker="gpu@host")
    at, rest = timed.split(" ", 1)
    assert rest == "INFO andp.test: plain"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()) < 60


def test_fields_are_given_back_after_an_error_and_belong_to_their_thread() -> None:
    seen = []

    def write() -> None:
        with pytest.raises(RuntimeError), logs.bound(run=1):
            thread = threading.Thread(target=lambda: log.info("elsewhere"))
            thread.start()
            thread.join()
            raise RuntimeError
        log.info("after")

    seen = objects(write)
    assert [("run" in line, line["message"]) for line in seen] == [(False, "elsewhere"), (False, "after")]


def test_a_misspelt_field_is_an_error() -> None:
    with (
        pytest.raises(TypeError, match="no field 'units' in a log line; there are run, stage, unit, worker"),
        logs.bound(units=1),
    ):
        pass  # pragma: no cover


def test_to_configure_again_doubles_nothing_and_leaves_other_handlers_alone() -> None:
    root = logging.getLogger()
    theirs = logging.NullHandler()
    root.addHandler(theirs)
    first = io.StringIO()
    logs.configure("INFO", stream=first)
    assert lines("json", lambda: log.info("once")) and not first.getvalue()
    assert theirs in root.handlers


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="ANDP_LOG_LEVEL is 'LOUD'; give DEBUG, INFO, WARNING or ERROR"):
        logs.configure("loud")


def test_a_library_s_warning_is_a_line_like_others() -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        (line,) = objects(lambda: warnings.warn("old", DeprecationWarning, stacklevel=1))
    assert line["logger"] == "py.warnings" and "DeprecationWarning: old" in line["message"]


def test_a_line_that_is_not_written_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("made")

    def unwanted(_text: str) -> str:
        raise AssertionError("masked")

    monkeypatch.setattr(logs, "mask", unwanted)
    assert lines("text", lambda: log.info("%s", Costly()), level="WARNING") == []


# ---------------------------------------------------------------------- secrets

SECRET = "hunter2-S3cret"
TOLD = {
    "a URL": f"postgresql://me:{SECRET}@db.example:5432/andp?sslmode=require",
    "a URL without a user": f"redis://:{SECRET}@cache:6379/0",
    "a URL with an @ in the password": f"amqp://me:p@ss/{SECRET}@queue.example//",
    "two URLs in a row": f"amqp://a:{SECRET}@one//;amqp://b:{SECRET}@two//",
    "a URL in quotes": f'cannot reach "amqp://me:{SECRET}@queue//", trying again',
    "a connection string": f"host=db user=me password={SECRET} dbname=andp",
    "a quoted password": f"host=db password='{SECRET} with spaces' dbname=andp",
    "a dict": f"{{'user': 'me', 'password': '{SECRET}', 'port': 1}}",
    "JSON": f'{{"api_key": "{SECRET}"}}',
    "the environment": f"PGPASSWORD={SECRET} ANDP_LLM_API_KEY={SECRET} HF_TOKEN={SECRET}",
    "a header": f"Authorization: Bearer {SECRET}",
    "another header": f"authorization: Basic {SECRET}",
    "headers as a dict": f"{{'Authorization': 'Bearer {SECRET}', 'x-api-key': '{SECRET}'}}",
    "a bearer token alone": f"sent with bearer {SECRET}",
    "a query": f"GET https://host/v1?api_key={SECRET}&n=1",
}


@pytest.mark.parametrize("text", TOLD.values(), ids=TOLD.keys())
def test_secrets_are_masked(text: str) -> None:
    masked = logs.mask(text)
    assert SECRET not in masked and "hunter2" not in masked and "with spaces" not in masked
    assert logs.MASK in masked


@pytest.mark.parametrize(
    "key",
    [
        "sk-" + "a1" * 12, "sk-proj-" + "a1" * 12, "hf_" + "aB3" * 10, "ghp_" + "aB3" * 12, "github_pat_" + "aB3" * 12,
        "AKIA" + "ABCD" * 4, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)  # fmt: skip
def test_keys_are_known_by_their_shape(key: str) -> None:
    assert logs.mask(f"with {key}, refused") == f"with {logs.MASK}, refused"


def test_what_is_no_secret_stays() -> None:
    for text in (
        "postgresql://db.example:5432/andp", "https://host:8080/a", "12 tokens: 5 new, max_tokens=64, pad_token_id=3",
        "amqp://guest@queue.example//", "basic adjectives of 4,630 neurons", "unit 3 of sk-learn", "key: value",
        "run 7: record 250 clips at 12:30:05 by me@host",
    ):  # fmt: skip
        assert logs.mask(text) == text
    assert logs.mask(f"postgresql://me:{SECRET}@db.example:5432/andp") == "postgresql://me:***@db.example:5432/andp"


@pytest.mark.parametrize("format", ["text", "json"])
def test_no_part_of_a_line_holds_a_secret(format: logs.Format) -> None:
    def write() -> None:
        try:
            raise ValueError(f"cannot connect: password={SECRET}")
        except ValueError:
            log.exception("broker %s", f"amqp://me:{SECRET}@queue//")
        log.info("settings", extra={"given": {"api_key": SECRET, "urls": [f"redis://:{SECRET}@h/0"], "n": 1}})
        log.info({"password": SECRET})

    told = "\n".join(lines(format, write))
    assert SECRET not in told and told.count(logs.MASK) >= 3


# ---------------------------------------------------------------------- the command


def test_the_command_refuses_another_format() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "and_platform.cli.main", "runs", "list"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "ANDP_LOG_FORMAT": "xml"}, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "andp: ANDP_LOG_FORMAT: Input should be 'text' or 'json'\n")
