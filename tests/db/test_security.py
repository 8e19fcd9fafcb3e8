"""What must not happen: a question that writes, a path that leaves its folder, a secret that is kept or shown."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL

from and_platform import api, db
from and_platform.backends import audio, registry
from and_platform.backends.datasets import LEAVES_ROOT, LINK_LEAVES_ROOT
from and_platform.backends.endpoints import ChatEndpoint
from and_platform.config import Settings, settings
from and_platform.errors import AudioError, ConfigError, QueryError
from and_platform.services import ask, datasets, provenance
from tests import tiny

Andp = Callable[..., CompletedProcess[str]]


# ---------------------------------------------------------------------- andp sql reads


@pytest.fixture
def kept(engine: sa.Engine) -> sa.Engine:
    """A database with a row that a question would have to change to show that it can."""
    with db.transaction(engine) as session:
        session.execute(sa.text("INSERT INTO texts (text) VALUES ('kept')"))
        # Large objects, another session, a function that writes: what there could be in a database.
        session.execute(
            sa.text(
                "CREATE FUNCTION writes() RETURNS int LANGUAGE plpgsql AS $$ BEGIN DELETE FROM texts; RETURN 1; END $$"
            )
        )
        session.execute(
            sa.text("CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; DELETE FROM texts; END $$")
        )
    return engine


ESCAPES = (
    "COMMIT; DELETE FROM texts",
    "COMMIT; BEGIN READ WRITE; DELETE FROM texts; COMMIT",
    "ROLLBACK; DELETE FROM texts",
    "; DELETE FROM texts",
    "SELECT 1; DELETE FROM texts",
    "DELETE FROM texts",
    "WITH gone AS (DELETE FROM texts RETURNING id) SELECT * FROM gone",
    "EXPLAIN ANALYZE DELETE FROM texts",
    "TRUNCATE texts CASCADE",
    "SELECT writes()",
    "CALL commits()",
    "DO $$ BEGIN DELETE FROM texts; END $$",
    "DO $$ BEGIN COMMIT; DELETE FROM texts; END $$",
    "DO $$ BEGIN EXECUTE 'SET TRANSACTION READ WRITE'; DELETE FROM texts; END $$",
    "SET TRANSACTION READ WRITE",
    "SELECT set_config('transaction_read_only', 'off', true)",
    "SELECT set_config('transaction_read_only', 'off', false), writes()",
    "SELECT set_config('default_transaction_read_only', 'off', false), writes()",
    "SELECT * FROM ts_stat('DELETE FROM texts RETURNING to_tsvector(text)')",
    "SELECT setval('texts_id_seq', 900)",
    "SELECT nextval('texts_id_seq')",
    "CREATE TABLE mine (n int)",
    "CREATE TEMP TABLE mine (n int)",
    "SELECT * INTO mine FROM texts",
    "SELECT lo_create(7)",
    "SELECT lo_import('/etc/hostname')",
    "COPY texts (text) FROM PROGRAM 'echo new'",
    "COPY texts TO STDOUT",
    "SELECT * FROM dblink('dbname=postgres', 'DELETE FROM texts') AS t (n text)",
    "CREATE EXTENSION dblink",
    "VACUUM texts",
    "ALTER SYSTEM SET fsync = off",
    "BEGIN READ WRITE",
    "SELECT text FROM texts FOR UPDATE",
    "GRANT ALL ON texts TO PUBLIC",
    "DROP TABLE texts",
    "LOCK TABLE texts",
)


@pytest.mark.parametrize("query", ESCAPES)
def test_a_question_cannot_write(kept: sa.Engine, query: str) -> None:
    with pytest.raises(QueryError):
        ask.sql(kept, query)
    with db.reading(kept) as session:
        assert session.scalars(sa.text("SELECT text FROM texts")).all() == ["kept"]
        assert session.scalar(sa.text("SELECT last_value FROM texts_id_seq")) < 900
        assert session.scalar(sa.text("SELECT to_regclass('mine')")) is None
        assert session.scalar(sa.text("SELECT count(*) FROM pg_largeobject_metadata")) == 0


@pytest.mark.parametrize("query", ["COMMIT", "ROLLBACK", "SET default_transaction_read_only = off", "NOTIFY everybody"])
def test_what_ends_the_transaction_changes_nothing_for_the_next_question(kept: sa.Engine, query: str) -> None:
    ask.sql(kept, query)
    with pytest.raises(QueryError, match="that query writes"):
        ask.sql(kept, "DELETE FROM texts")


def test_a_question_ends_in_time_and_cannot_prolong_itself(kept: sa.Engine) -> None:
    for query in ("SELECT pg_sleep(20)", "DO $$ BEGIN SET LOCAL statement_timeout = 0; PERFORM pg_sleep(20); END $$"):
        with pytest.raises(QueryError, match=r"cancelled after 0\.2 s"):
            ask.sql(kept, query, timeout=0.2)


def test_a_reader_cannot_reach_beyond_the_tables(kept: sa.Engine, database_url: URL) -> None:
    """What a superuser's connection could do in a read-only transaction, a reader's cannot."""
    from and_platform.services import roles

    roles.apply(kept)
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as admin:
        admin.execute("CREATE ROLE asking LOGIN IN ROLE andp_reader")
        try:
            engine = db.make_engine(database_url.set(username="asking"), Settings())
            for query in (
                "SELECT pg_read_file('PG_VERSION')",
                "SELECT pg_ls_dir('.')",
                "SELECT lo_export(1, '/tmp/andp-escaped')",
                "COPY (SELECT 1) TO PROGRAM 'cat'",
                "COPY (SELECT 1) TO '/tmp/andp-escaped'",
                f"SELECT pg_terminate_backend({admin.info.backend_pid})",
                "SELECT set_config('role', 'postgres', true)",
                "SELECT set_config('session_authorization', 'postgres', true)",
                "DO $$ BEGIN RESET ROLE; PERFORM pg_read_file('PG_VERSION'); END $$",
                "SELECT rolpassword FROM pg_authid",
                "SELECT andp_make_partitions(1)",
            ):
                with pytest.raises(QueryError, match=r"permission denied|must be|cannot"):
                    ask.sql(engine, query)
            engine.dispose()
        finally:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'asking'")
            admin.execute("DROP ROLE asking")
    assert not Path("/tmp/andp-escaped").exists()


# ---------------------------------------------------------------------- paths stay in their folder


@pytest.fixture
def tempting(tmp_path: Path) -> Path:
    """A data set beside a sound that is not of it, with every way to name that one."""
    tiny.sounds(tmp_path / "own", 1)
    outside = tmp_path / "private.wav"
    shutil.copy(tmp_path / "own" / "high" / "high-0.wav", outside)
    (tmp_path / "private").mkdir()
    shutil.copy(outside, tmp_path / "private" / "secret.wav")
    (tmp_path / "own" / "high" / "linked.wav").symlink_to(outside)
    (tmp_path / "own" / "folder").symlink_to(tmp_path / "private")
    (tmp_path / "own" / "low" / "inside.wav").symlink_to(tmp_path / "own" / "noise" / "noise-0.wav")
    rows = (
        "high/high-0.wav", "low/inside.wav", "../private.wav", "high/../../private.wav", str(outside), "high/linked.wav",
        "folder/secret.wav", "..", "/", ".",
    )  # fmt: skip
    (tmp_path / "own" / "list.csv").write_text("\n".join(["path", *rows, ""]))
    return tmp_path / "own"


def test_paths_of_a_manifest_stay_in_the_root(andp: Andp, engine: sa.Engine, tempting: Path) -> None:
    told = json.loads(andp("ingest", "manifest", str(tempting / "list.csv"), "--json", "--processes", "1").stdout)
    assert (told["new"], told["failed"]) == (2, 8)
    kept = json.loads(andp("failures", "--json").stdout)
    assert {row["unit"]: row["reason"] for row in kept} == {
        **dict.fromkeys(
            ["../private.wav", "high/../../private.wav", f"{tempting.parent}/private.wav", "..", "/", "."], LEAVES_ROOT
        ),
        "high/linked.wav": LINK_LEAVES_ROOT,
        "folder/secret.wav": LINK_LEAVES_ROOT,
    }
    # Allowed, links are followed; what the text leads out of is a matter of --root.
    told = json.loads(
        andp("ingest", "manifest", str(tempting / "list.csv"), "--allow-outside", "--json", "--processes", "1").stdout
    )
    assert (told["new"], told["unchanged"], told["failed"]) == (2, 2, 6)


def test_links_in_a_folder_stay_in_it(engine: sa.Engine, tempting: Path) -> None:
    andp_ = api.Platform(engine)
    told = andp_.ingest(tempting, processes=1)
    assert told.new == 4  # one sound of each class, and the link to one of them
    assert dict(told.failures) == {"high/linked.wav": LINK_LEAVES_ROOT, "folder": LINK_LEAVES_ROOT}
    assert andp_.ingest(tempting, processes=1, allow_outside=True).new == 2


def test_a_row_that_was_tampered_with_is_not_read(engine: sa.Engine, tempting: Path) -> None:
    andp_ = api.Platform(engine)
    andp_.ingest(tempting, processes=1)
    andp_.add_network("tiny", tiny.network(tempting.parent / "network"))
    with db.transaction(engine) as session:
        session.execute(sa.text("UPDATE clips SET path = '../private.wav' WHERE path = 'high/high-0.wav'"))
    report = andp_.dissect("tiny", dataset="own", stages="record")
    assert report.failed_clips == ["../private.wav"]
    with db.reading(engine) as session:
        assert session.scalars(sa.text("SELECT reason FROM failures WHERE stage = 'record'")).all() == [audio.OUTSIDE]
        assert datasets.find(session, "own").root == str(tempting)


@pytest.mark.parametrize("path", ["..", "../x.wav", "a/../../x.wav", "/etc/passwd", "."])
def test_where_a_clip_lies(tmp_path: Path, path: str) -> None:
    with pytest.raises(AudioError, match=r"^outside: "):
        audio.at(tmp_path, path)
    assert audio.at(tmp_path, "a/..b/x.wav") == tmp_path / "a" / "..b" / "x.wav"


# ---------------------------------------------------------------------- secrets

PASSWORD, KEY, DATABASE_PASSWORD = "canary-Pa55-endpoint", "canary-key-0123456789", "canary-Pa55-database"
CANARIES = (PASSWORD, KEY, DATABASE_PASSWORD, base64.b64encode(f"tester:{PASSWORD}".encode()).decode())


class Server:
    """An endpoint that wants the user's password, and repeats in its errors whatever it was sent."""

    def __init__(self) -> None:
        self.authorised: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.authorised.append(self.headers.get("authorization", ""))
                user = body["messages"][-1]["content"]
                if len(server.authorised) % 4 == 0:
                    status, answer = (
                        400,
                        {"error": f"bad request by {PASSWORD}, key {KEY}, {self.headers['authorization']}"},
                    )
                else:
                    status, answer = 200, {"choices": [{"message": {"content": f"A sound like {len(user)}."}}]}
                raw = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def everything(engine: sa.Engine) -> dict[str, str]:
    """Column -> all that it holds, of every column of the database that can hold text."""
    with db.reading(engine) as session:
        columns = session.execute(
            sa.text(
                "SELECT c.table_name, c.column_name FROM information_schema.columns c"
                " JOIN information_schema.tables t USING (table_schema, table_name)"
                " WHERE c.table_schema = 'public' AND t.table_type = 'BASE TABLE'"
                " AND (c.data_type IN ('text', 'jsonb', 'json', 'character varying', 'bytea') OR c.data_type = 'ARRAY')"
            )
        ).all()
        return {
            f"{table}.{column}": session.scalar(
                sa.text(f'SELECT coalesce(string_agg("{column}"::text, chr(10)), \'\') FROM "{table}"')
            )
            for table, column in columns
        }


def test_secrets_are_neither_kept_nor_shown(andp: Andp, engine: sa.Engine, server: Server, tmp_path: Path) -> None:
    tiny.sounds(tmp_path / "tones", 2)
    tiny.network(tmp_path / "network")
    with db.transaction(engine) as session:  # one who is let in with any password
        session.execute(sa.text("CREATE ROLE canary LOGIN SUPERUSER"))
    plain = engine.url.set(drivername="postgresql", username="canary", password=DATABASE_PASSWORD)
    url = plain.render_as_string(hide_password=False)
    secret = {"ANDP_DATABASE_URL": url, "ANDP_LLM_API_KEY": KEY, "ANDP_BROKER_URL": f"amqp://u:{PASSWORD}@h//"}
    llm = f"openai:my-model@http://tester:{PASSWORD}@{server.address}"
    told: list[str] = []

    def run(*arguments: str) -> CompletedProcess[str]:
        done = andp(*arguments, check=False, env=secret)
        told.extend([done.stdout, done.stderr])
        return done

    run("ingest", "folder", str(tmp_path / "tones"), "--processes", "1")
    run("networks", "add", "tiny", str(tmp_path / "network"))
    dissect = ("dissect", "tiny", "--dataset", "tones", "--llm", llm, "--layers", "head")
    options = ("--llm-option", "attempts=1", "--llm-option", f"extra_body={{api_key = '{KEY}'}}")
    assert run("-v", *dissect, *options).returncode == 0
    wanted = f"Basic {base64.b64encode(f'tester:{PASSWORD}'.encode()).decode()}"
    assert server.authorised and set(server.authorised) == {wanted}
    run(*dissect, *options, "--dry-run", "--json")
    # Wrong in every way: each is an error that has the address at hand.
    assert run("dissect", "tiny", "--dataset", "tones", "--llm", f"openai:@http://u:{PASSWORD}@h").returncode == 2
    nobody = f"openai:my-model@http://tester:{PASSWORD}@127.0.0.1:9/v1"
    run(
        "-v", "dissect", "tiny", "--dataset", "tones", "--llm", nobody, "--llm-option", "attempts=1", "--layers", "head"
    )
    run("dissect", "tiny", "--dataset", "tones", "--llm", llm, "--llm-option", "no_such_option=1")
    for show in (
        ("db", "status"), ("db", "url"), ("doctor",), ("runs", "list", "--json"), ("failures", "--json"),
        ("dissections", "list", "--json"), ("dissections", "show", "1"), ("broker", "check"),
    ):  # fmt: skip
        run(*show)
    for number in range(1, 6):
        run("runs", "show", str(number), "--json")

    kept = everything(engine)
    assert "my-model" in kept["dissections.config"] and "tester:***@" in kept["dissections.config"]
    assert "tester:***@" in kept["runs.arguments"]
    assert "bad request" in kept["failures.reason"]
    assert "my-model" in kept["recipes.params"]
    for canary in CANARIES:
        assert [column for column, text in kept.items() if canary in text] == []
        assert canary not in "".join(told)


def test_a_password_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers make their models from what a run has kept: the password is not in it."""
    made = lambda url: ChatEndpoint(  # noqa: E731
        "m", url, name="openai", concurrency=1, timeout_s=1, attempts=1, first_wait_s=0
    )
    with pytest.raises(ConfigError, match=r"the password of 'me' at host is not known; set ANDP_LLM_PASSWORD"):
        made("http://me:***@host/v1")
    monkeypatch.setenv("ANDP_LLM_PASSWORD", PASSWORD)
    settings.cache_clear()
    for url in ("http://me:***@host/v1", "http://me@host/v1"):
        endpoint = made(url)
        assert endpoint.base_url == "http://host/v1"
        request = endpoint._client.build_request("POST", "http://host/v1")
        sent = next(endpoint._client.auth.auth_flow(request))  # type: ignore[union-attr]
        assert base64.b64decode(sent.headers["authorization"].split()[1]).decode() == f"me:{PASSWORD}"


def test_a_wrong_address_is_told_without_its_password() -> None:
    for spec in (f"openai:m@ftp://u:{PASSWORD}@h", f"openai:http://u:{PASSWORD}@h"):
        with pytest.raises(ConfigError) as caught:
            registry.create("llm", spec)
        assert PASSWORD not in str(caught.value)


def test_recipes_keep_prompts_and_drop_keys() -> None:
    from and_platform.backends.base import BackendRecipe

    prompt = "Say the password: what do you hear? api_key=none"
    plan = provenance.RecipePlan.of(
        "caption",
        BackendRecipe(
            "b", "1", {"prompt": prompt, "extra_body": {"api_key": KEY, "n": 1}, "url": f"http://u:{PASSWORD}@h"}
        ),
    )
    assert plan.params == {"prompt": prompt, "extra_body": {"api_key": "***", "n": 1}, "url": "http://u:***@h"}


# ---------------------------------------------------------------------- secrets from files


def test_secrets_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "andp_database_url").write_text("postgresql://me:secret@db/andp\n")
    (tmp_path / "andp_llm_api_key").write_text(KEY)
    monkeypatch.setenv("ANDP_SECRETS_DIR", str(tmp_path))
    found = Settings()
    assert found.database_url and found.database_url.get_secret_value() == "postgresql://me:secret@db/andp"
    assert found.llm_api_key and found.llm_api_key.get_secret_value() == KEY
    monkeypatch.setenv("ANDP_DATABASE_URL", "postgresql://other/andp")
    assert str(db.database_url(Settings())) == "postgresql+psycopg://other/andp"
    monkeypatch.setenv("ANDP_SECRETS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"ANDP_SECRETS_DIR is '.*nowhere', which is no folder"):
        settings()


def test_a_command_takes_its_secrets_from_files(andp: Andp, environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "andp_database_url").write_text(environment["ANDP_DATABASE_URL"])
    told = andp("db", "status", "--json", env={"ANDP_DATABASE_URL": "", "ANDP_SECRETS_DIR": str(folder)})
    assert json.loads(told.stdout)[0]["server"] == "yours"
    gone = andp("db", "status", check=False, env={"ANDP_SECRETS_DIR": "/nowhere"})
    assert gone.returncode == 2 and "Traceback" not in gone.stderr
