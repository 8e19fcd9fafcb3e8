"""What is masked, and what stays."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from and_platform import masking
from and_platform.masking import MASK, mask

S = "hunter2S3cret9x"
PEM = "-----BEGIN {0}PRIVATE KEY-----\nMIIEv" + S + "\n" + S + "==\n-----END {0}PRIVATE KEY-----"

# shape -> a text with the secret between "before" and "after", which both stay
SHAPES = {
    "url": f"before postgresql://me:{S}@db.example/andp after",
    "url without a user": f"before redis://:{S}@cache:6379/0 after",
    "url with an @ in the password": f"before amqp://me:p@x{S}@queue// after",
    "url of sqlalchemy": f"before postgresql+psycopg://me:{S}@db/andp after",
    "token as the user": f"before https://{S}@host/repo.git after",
    "token as the user of git": f"before git+https://{S}@host/repo after",
    "sentry": f"before https://{S}@o1.ingest.example/1 after",
    "oauth user": f"before https://oauth2:{S}@host/repo after",
    "mongodb": f"before mongodb+srv://me:{S}@cluster0.example/db?retryWrites=true after",
    "query password": f"before postgresql:///andp?host=/x&password={S}&sslmode=require after",
    "query api key": f"before GET https://host/v1?api_key={S}&n=1 after",
    "query key": f"before https://maps.example/api?key={S}&q=1 after",
    "query token": f"before https://host/?token={S} after",
    "query access token": f"before https://host/?access_token={S}#x after",
    "amazon signature": f"before https://b.s3.example/k?X-Amz-Expires=60&X-Amz-Signature={S}&a=1 after",
    "amazon credential": f"before https://b.s3.example/k?X-Amz-Credential={S}&X-Amz-Date=2 after",
    "amazon session token": f"before https://b.s3.example/k?X-Amz-Security-Token={S} after",
    "google signature": f"before https://storage.example/k?X-Goog-Signature={S}&x=1 after",
    "azure sas": f"before https://acc.blob.example/c?sv=2022&sp=r&sig={S} after",
    "cloudfront": f"before https://d1.example/x?Policy={S}&Key-Pair-Id=K2 after",
    "old amazon": f"before https://b.s3.example/k?AWSAccessKeyId=x&Signature={S}&Expires=1 after",
    "oauth code": f"before https://app.example/callback?code={S}&state=1 after",
    "dsn": f"before host=db user=me password={S} dbname=andp after",
    "dsn in quotes": f"before host=db password='{S} with spaces' after",
    "dsn with an escaped quote": f"before host=db password='x\\'{S}' after",
    "dsn with a comma": f"before host=db password=a,b){S} dbname=andp after",
    "odbc": f"before Server=db;Uid=me;Pwd={S};Database=x after",
    "azure account": f"before AccountName=x;AccountKey={S}==;EndpointSuffix=core after",
    "environment": f"before PGPASSWORD={S} after",
    "environment of an api": f"before ANDP_LLM_API_KEY={S} after",
    "environment of the hub": f"before HF_TOKEN={S} after",
    "environment of amazon": f"before AWS_SECRET_ACCESS_KEY={S} after",
    "export": f"before export OPENAI_API_KEY='{S}' after",
    "yaml": f"before password: {S} after",
    "toml": f'before api_key = "{S}" after',
    "dict": f"before {{'password': '{S}', 'port': 1}} after",
    "json": f'before {{"api_key": "{S}"}} after',
    "json with a quote inside": f'before {{"password": "x\\"{S}"}} after',
    "json in json": "before " + json.dumps(json.dumps({"api_key": S})) + " after",
    "json in json in json": "before " + json.dumps(json.dumps(json.dumps({"password": S}))) + " after",
    "json that is cut": f'before after {{"password": "{S}',
    "client secret": f'before {{"client_secret":"{S}"}} after',
    "percent": f"before password%3D{S} after",
    "bearer header": f"before Authorization: Bearer {S} after",
    "basic header": f"before authorization: Basic {S}== after",
    "token header": f"before Authorization: token {S} after",
    "header without a scheme": f"before Authorization: {S} after",
    "proxy header": f"before Proxy-Authorization: Basic {S} after",
    "headers as a dict": f"before {{'Authorization': 'Bearer {S}', 'n': '1'}} after",
    "digest header": f'before after\nAuthorization: Digest username="me", response="{S}"',
    "amazon header": f"before after\nAuthorization: AWS4-HMAC-SHA256 Credential=x, Signature={S}",
    "api key header": f"before X-Api-Key: {S} after",
    "auth token header": f"before X-Auth-Token: {S} after",
    "cookie": f"before after\nCookie: session={S}; theme=dark",
    "set-cookie": f"before after\nSet-Cookie: sid={S}; Path=/; HttpOnly",
    "bearer alone": f"before sent with bearer {S} after",
    "flag": f"before tool --api-key {S} after",
    "flag with =": f"before tool --api-key={S} after",
    "flag of a password": f"before tool --password {S} after",
    "flag of a token": f"before tool --auth-token {S} after",
    "flag in a list": f"before ['tool', '--api-key', '{S}', '-n'] after",
    "curl": f"before curl -u me:{S} https://host after",
    "sql": f"before ALTER ROLE me PASSWORD '{S}' VALID after",
    "sql with a quote inside": f"before CREATE ROLE me PASSWORD 'x''{S}' after",
    "mysql": f"before IDENTIFIED BY '{S}' after",
    "netrc": f"before machine host login me password {S} after",
    "pgpass": f"before after\nlocalhost:5432:andp:me:{S}",
    "pem": "before " + PEM.format("") + " after",
    "pem of rsa": "before " + PEM.format("RSA ") + " after",
    "pem of openssh": "before " + PEM.format("OPENSSH ") + " after",
    "pem in json": "before " + json.dumps(PEM.format("EC ")) + " after",
    "pem that is cut": f"before after -----BEGIN PRIVATE KEY-----\nMIIE{S}",
    "slack hook": f"before https://hooks.slack.com/services/T0/B0/{S} after",
    "discord hook": f"before https://discord.com/api/webhooks/1/{S} after",
}  # fmt: skip


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES.keys())
def test_a_secret_is_gone_and_what_stands_around_it_stays(text: str) -> None:
    out = mask(text)
    assert S not in out and "hunter2" not in out and "with spaces" not in out
    assert MASK in out and "before" in out and "after" in out


KEYS = [
    "sk-" + "a1" * 12, "sk-proj-" + "a1" * 12, "sk-ant-api03-" + "a1" * 12, "sk_live_" + "aB3" * 8, "rk_test_" + "aB3" * 8,
    "hf_" + "aB3" * 10, "ghp_" + "aB3" * 12, "gho_" + "aB3" * 12, "github_pat_" + "aB3" * 12, "glpat-" + "aB3" * 8,
    "AKIA" + "ABCD" * 4, "ASIA" + "ABCD" * 4, "AIza" + "aB3xy" * 7, "xoxb-" + "12ab" * 6, "npm_" + "aB3" * 12,
    "dckr_pat_" + "aB3" * 8, "SG." + "aB3" * 8 + "." + "aB3" * 8, "ya29." + "aB3" * 10, "hvs." + "aB3" * 8, "gsk_" + "aB3" * 8,
    "dapi" + "0a1b2c3d" * 4, "123456789:AA" + "aB3" * 11, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_known_by_its_shape(key: str) -> None:
    assert mask(f"with {key}, refused") == f"with {MASK}, refused"


INNOCENT = [
    "postgresql://db.example:5432/andp", "https://host:8080/a?n=1&page=2", "amqp://guest@queue.example//", "http://user@host/v1",
    "postgresql://postgres@/andp?host=%2Fhome%2Fme", "12 tokens: 5 new, max_tokens=64, pad_token_id=3", "unit 3 of sk-learn",
    "basic adjectives of 4,630 neurons", "key: value", "run 7: record 250 clips at 12:30:05 by me@host", "b03.ff_in#17",
    "There is a low, rumbling noise. It is low-pitched, with a deep, heavy bass.", "a secret garden, a password is spoken",
    "3f786850e387550fdab836ed7e6dc881de23001b", "123e4567-e89b-12d3-a456-426614174000", "/home/me/sounds/dog/1-1.wav",
    "SELECT neuron, key FROM t WHERE key = 'x' AND n > 3", "tests/x.py:12:3: E501 too long",
    "--key value --tokenizer x --max-tokens 9",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "head#20 0.635 rank 1 of db, cos_cubed",
    "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----", "the singer's token of love", "monkey=banana", "a\tb\n\nc",
    "audio-lm:/models/qwen@main", "user@host: no answer", "cookies are crunched", "pass: 3 of 4 folds",
]  # fmt: skip


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask(text) == text


@given(st.sampled_from(sorted(SHAPES.values())), st.text(max_size=40), st.text(max_size=40))
def test_no_text_around_it_brings_a_secret_back(shape: str, before: str, after: str) -> None:
    assert S not in mask(f"{before} \n{shape}\n {after}")


@given(st.sampled_from(sorted(SHAPES.values())))
def test_to_mask_again_changes_nothing(shape: str) -> None:
    assert mask(mask(shape)) == mask(shape)


def test_a_long_text_is_bounded() -> None:
    assert len(mask("x " * 1_000_000)) <= 262_144
    assert masking.shortened("abcdefghij" * 10, 20) == "abcdefghij … 80 characters left out … abcdefghij"
    assert masking.shortened("short", 20) == "short"
