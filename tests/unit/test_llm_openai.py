"""The client of OpenAI-compatible endpoints against a real server on the loopback."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from and_platform.backends.base import Form, Generation, Prompt
from and_platform.backends.endpoints import EndpointError, _retry_after
from and_platform.backends.llms import forms
from and_platform.backends.llms.openai import OpenAILLM
from and_platform.config import settings
from and_platform.errors import ConfigError, GenerationError

Reply = tuple[int, dict[str, str], Any]


def completion(text: str, prompt_tokens: int = 7, completion_tokens: int = 3) -> dict[str, Any]:
    return {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


class Endpoint:
    """A server whose `reply` gets what the user said and how often that was said before."""

    def __init__(self) -> None:
        self.reply: Callable[[str, int], Reply] = lambda user, before: (200, {}, completion(f"re: {user}"))
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.busiest = 0
        self._said: Counter[str] = Counter()
        self._busy = 0
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                user = body["messages"][-1]["content"]
                with endpoint._lock:
                    endpoint.times.append(time.monotonic())
                    endpoint.requests.append({"path": self.path, **body})
                    endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                    before = endpoint._said[user]
                    endpoint._said[user] += 1
                    endpoint._busy += 1
                    endpoint.busiest = max(endpoint.busiest, endpoint._busy)
                status, headers, answer = endpoint.reply(user, before)
                with endpoint._lock:
                    endpoint._busy -= 1
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                with suppress(ConnectionError):  # a client that has timed out is gone
                    self.send_response(status)
                    for name, value in {**headers, "content-length": str(len(data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def client(endpoint: Endpoint, **options: Any) -> OpenAILLM:
    return OpenAILLM("tiny", endpoint.url, **{"first_wait_s": 0.01, "attempts": 3, **options})


def ask(endpoint: Endpoint, *users: str, **options: Any) -> list[Generation | Exception]:
    return client(endpoint, **options).generate([Prompt(user) for user in users], max_tokens=9)


def test_what_is_asked_and_answered(endpoint: Endpoint) -> None:
    llm = client(endpoint, temperature=0.3, top_p=0.9, seed=5)
    answers = llm.generate([Prompt("a", system="Be brief."), Prompt("b")], max_tokens=9)
    assert answers == [Generation("re: a", 7, 3, "stop"), Generation("re: b", 7, 3, "stop")]
    first = next(request for request in endpoint.requests if request["messages"][-1]["content"] == "a")
    assert first == {
        "path": "/v1/chat/completions",
        "model": "tiny",
        "temperature": 0.3,
        "top_p": 0.9,
        "seed": 5,
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}],
    }
    assert (llm.usage.requests, llm.usage.retries) == (2, 0)
    assert (llm.usage.prompt_tokens, llm.usage.completion_tokens) == (14, 6)
    assert llm.usage.tokens_per_second > 0


def test_order_is_kept_and_no_more_than_allowed_run_at_once(endpoint: Endpoint) -> None:
    def slow(user: str, before: int) -> Reply:
        time.sleep(0.03 if int(user) % 2 else 0.01)
        return 200, {}, completion(user)

    endpoint.reply = slow
    users = [str(number) for number in range(24)]
    answers = ask(endpoint, *users, concurrency=4)
    assert [answer.text for answer in answers if isinstance(answer, Generation)] == users
    assert endpoint.busiest == 4


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_passing_failures_are_tried_again(endpoint: Endpoint, status: int) -> None:
    endpoint.reply = lambda user, before: (200 if before else status, {}, completion("at last"))
    llm = client(endpoint)
    assert llm.generate([Prompt("a")], max_tokens=9) == [Generation("at last", 7, 3, "stop")]
    assert (llm.usage.requests, llm.usage.retries, llm.usage.prompt_tokens) == (2, 1, 7)


def test_the_server_says_when_to_come_again(endpoint: Endpoint) -> None:
    endpoint.reply = lambda user, before: (200 if before else 429, {"Retry-After": "0.4"}, completion("x"))
    (answer,) = ask(endpoint, "a")
    assert isinstance(answer, Generation)
    assert 0.4 <= endpoint.times[1] - endpoint.times[0] < 5


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    waits = [_retry_after(httpx.Response(429, headers={"Retry-After": value})) for value in (later, "7", "soon", "")]
    assert waits[0] == pytest.approx(30, abs=2)
    assert waits[1:] == [7.0, None, None]
    assert _retry_after(httpx.Response(429)) is None


def test_a_prompt_that_keeps_failing_does_not_take_others_along(endpoint: Endpoint) -> None:
    endpoint.reply = lambda user, before: (500 if user == "bad" else 200, {}, completion("fine"))
    good, bad, also_good = ask(endpoint, "a", "bad", "b")
    assert good == also_good == Generation("fine", 7, 3, "stop")
    assert isinstance(bad, GenerationError)
    assert "answered 500" in str(bad)
    assert "gave up after 3 attempts" in str(bad)
    assert len(endpoint.requests) == 5


@pytest.mark.parametrize(
    "garbage", [b"<html>", {}, {"choices": []}, {"choices": [{"message": None}]}, [1], {"choices": "x"}]
)
def test_garbage_is_tried_again_and_then_an_error(endpoint: Endpoint, garbage: Any) -> None:
    endpoint.reply = lambda user, before: (200, {}, completion("good") if user == "a" and before else garbage)
    answers = ask(endpoint, "a", "b")
    assert answers[0] == Generation("good", 7, 3, "stop")
    assert isinstance(answers[1], GenerationError)
    assert "no completion" in str(answers[1])


def test_an_answer_without_usage_counts_nothing(endpoint: Endpoint) -> None:
    endpoint.reply = lambda user, before: (200, {}, {"choices": [{"message": {"content": "hi"}}]})
    assert ask(endpoint, "a") == [Generation("hi", 0, 0, "stop")]


@pytest.mark.parametrize("content", ["", "  \n", None])
def test_an_empty_answer_is_an_error_at_once(endpoint: Endpoint, content: str | None) -> None:
    endpoint.reply = lambda user, before: (200, {}, completion(content))  # type: ignore[arg-type]
    (answer,) = ask(endpoint, "a")
    assert isinstance(answer, GenerationError)
    assert "empty answer" in str(answer)
    assert len(endpoint.requests) == 1


def test_a_refused_prompt_is_not_tried_again(endpoint: Endpoint) -> None:
    endpoint.reply = lambda user, before: (400, {}, {"error": "too long"})
    answers = ask(endpoint, "a", "b")
    assert all(isinstance(answer, GenerationError) and "too long" in str(answer) for answer in answers)
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("status", "message"), [(401, "set ANDP_LLM_API_KEY"), (404, "does not serve the model 'tiny'")]
)
def test_a_fault_of_the_endpoint_stops_the_rest(endpoint: Endpoint, status: int, message: str) -> None:
    endpoint.reply = lambda user, before: (status, {}, {"error": "no"})
    answers = ask(endpoint, *"abcdefgh", concurrency=1)
    assert all(isinstance(answer, EndpointError) and message in str(answer) for answer in answers)
    assert len(endpoint.requests) == 1


def test_nobody_there() -> None:
    llm = OpenAILLM("tiny", "http://127.0.0.1:9/v1", attempts=2, first_wait_s=0.01, concurrency=1)
    answers = llm.generate([Prompt(user) for user in "abc"], max_tokens=9)
    assert all(isinstance(answer, EndpointError) and "is the server running?" in str(answer) for answer in answers)
    assert llm.usage.requests == 2


def test_a_slow_answer_times_out_and_is_tried_again(endpoint: Endpoint) -> None:
    def reply(user: str, before: int) -> Reply:
        if not before:
            time.sleep(0.5)
        return 200, {}, completion("now")

    endpoint.reply = reply
    assert ask(endpoint, "a", timeout_s=0.2) == [Generation("now", 7, 3, "stop")]


def test_the_key_comes_from_its_variable_alone(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "for-somebody-else")
    monkeypatch.delenv("ANDP_LLM_API_KEY", raising=False)
    ask(endpoint, "a")
    monkeypatch.setenv("ANDP_LLM_API_KEY", "secret")
    settings.cache_clear()
    llm = client(endpoint)
    llm.generate([Prompt("b")], max_tokens=9)
    assert [headers.get("authorization") for headers in endpoint.headers] == [None, "Bearer secret"]
    assert "secret" not in repr(llm.recipe)


def test_recipe_and_address() -> None:
    llm = OpenAILLM("tiny", "http://localhost:1/v1/", seed=4)
    assert llm.base_url == "http://localhost:1/v1"
    assert llm.recipe.params == {"model": "tiny", "temperature": 1.0, "top_p": 1.0, "seed": 4}
    assert llm.recipe.revision == "tiny"
    assert OpenAILLM("tiny", "http://localhost:2/v1", revision="abc").recipe.revision == "abc"
    assert llm.generate([], max_tokens=9) == []
    with pytest.raises(ConfigError, match="no address of an endpoint"):
        OpenAILLM("tiny", "localhost:8000")


FORM = Form(("dog", "cat"), "before")


@pytest.mark.parametrize(
    ("way", "field"),
    [
        ("vllm", "structured_outputs"),
        ("llama.cpp", "grammar"),
        ("json_schema", "response_format"),
        (True, "response_format"),
    ],
)
def test_a_form_is_written_for_the_server(endpoint: Endpoint, way: bool | str, field: str) -> None:
    llm = client(endpoint, structured=way)
    assert llm.structured
    llm.generate([Prompt("a")], max_tokens=9, form=FORM)
    llm.generate([Prompt("b")], max_tokens=9)
    held, free = endpoint.requests
    assert set(held) - set(free) == {field}
    said = {
        "structured_outputs": {"regex": forms.regex(FORM)},
        "grammar": forms.grammar(FORM),
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": forms.schema(FORM)},
        },
    }
    assert held[field] == said[field]
    asked = held["messages"][-1]["content"]
    assert asked == ("a" if field != "response_format" else f"a\n\n{forms.request(FORM)}")
    assert llm.recipe.params["structured"] == ("json_schema" if way is True else way)


def test_an_unknown_server_gets_no_form(endpoint: Endpoint) -> None:
    for structured in (False, "auto"):
        llm = client(endpoint, structured=structured)
        assert not llm.structured
        llm.generate([Prompt("a")], max_tokens=9, form=FORM)
        assert llm.recipe == client(endpoint).recipe
    assert all("response_format" not in request for request in endpoint.requests)
    with pytest.raises(ConfigError, match="cannot take structured"):
        client(endpoint, structured="guidance")


def test_further_fields_of_a_request(endpoint: Endpoint) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    llm = client(endpoint, extra_body=extra)
    llm.generate([Prompt("a")], max_tokens=9)
    assert endpoint.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert llm.recipe.params["extra_body"] == extra
    with pytest.raises(ConfigError, match="extra_body cannot set seed, temperature"):
        client(endpoint, extra_body={"temperature": 1, "seed": 3})


def test_answers_are_handed_out_as_they_come(endpoint: Endpoint) -> None:
    slow = threading.Event()

    def reply(user: str, before: int) -> Reply:
        if user == "slow":
            slow.wait(10)
        return 200, {}, completion(user)

    endpoint.reply = reply
    stream = client(endpoint, concurrency=2).stream([Prompt("slow"), Prompt("b"), Prompt("c")], max_tokens=9)
    assert [next(stream)[0], next(stream)[0]] == [1, 2]
    slow.set()
    assert next(stream) == (0, Generation("slow", 7, 3, "stop"))
    assert next(stream, None) is None


def test_whoever_stops_early_pays_for_no_more(endpoint: Endpoint) -> None:
    stream = client(endpoint, concurrency=1).stream([Prompt(str(i)) for i in range(50)], max_tokens=9)
    next(stream)
    stream.close()
    assert len(endpoint.requests) <= 3
