"""A client of OpenAI-compatible chat endpoints: many requests at once, retries, and faults that concern all of them."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
import tenacity

from and_platform.backends.base import Generation
from and_platform.config import settings
from and_platform.errors import BackendError, ConfigError, GenerationError
from and_platform.logs import MASK, mask

API_KEY_VARIABLE = "ANDP_LLM_API_KEY"

_TRANSIENT_STATUS = frozenset([408, 409, 425, 429])
_ENDPOINT_STATUS = frozenset([401, 403, 404, 405])
_LONGEST_WAIT_S = 120.0

Item = TypeVar("Item")


class EndpointError(BackendError):
    """The endpoint refuses or does not exist: no request can succeed, whatever it says."""


class _TransientError(GenerationError):
    """A failure that may pass: busy, timed out, garbled. `retry_after`: seconds, if the server named them."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _UnreachableError(_TransientError):
    """No server answered; if it stays so, every other request would fail too."""


@dataclass
class Usage:
    """What an endpoint was used for since the client was made; `requests` counts attempts."""

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated per second of wall-clock time since the client was made."""
        return self.completion_tokens / max(time.monotonic() - self.started, 1e-9)


class ChatEndpoint:
    """A model at an OpenAI-compatible endpoint that is asked many things at once.

    Parameters
    ----------
    model
        The model's name at the endpoint.
    base_url
        For instance "http://localhost:8000/v1", or "http://user@host/v1" with the password in ANDP_LLM_PASSWORD. A
        password in it is used, too, and kept nowhere: other processes take theirs from ANDP_LLM_PASSWORD.
    name
        The backend's name in the registry, for messages.
    concurrency
        Requests under way at the same time.
    timeout_s
        For one request.
    attempts
        How often a request is tried when the server is busy, fails, times out or answers garbage. Waits grow
        from `first_wait_s` with jitter, or are as long as the server's Retry-After says, within two minutes.

    Raises
    ------
    ConfigError
        If `base_url` is no address, or names a user whose password is not known.

    Notes
    -----
    A key is taken from ANDP_LLM_API_KEY alone (or the file of secrets), and sent to the endpoints that the user names.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        name: str,
        concurrency: int,
        timeout_s: float,
        attempts: int,
        first_wait_s: float,
    ) -> None:
        try:
            url = httpx.URL(base_url)
            is_address = url.scheme in ("http", "https") and bool(url.host)
        except httpx.InvalidURL:
            is_address = False
        if not is_address:
            raise ConfigError(
                f"'{mask(base_url)}' is no address of an endpoint; write {name}:MODEL@http://host:port/v1"
            )
        key, password = _secrets()
        auth = sent = None
        if url.username:
            own = url.password if url.password not in ("", MASK) else password
            if own is None:
                raise ConfigError(f"the password of '{url.username}' at {url.host} is not known; set ANDP_LLM_PASSWORD")
            auth, password = httpx.BasicAuth(url.username, own), own
            sent = base64.b64encode(f"{url.username}:{own}".encode()).decode()
        self.model = model
        self.base_url = str(url.copy_with(userinfo=b"")).rstrip("/")
        self._hidden = [secret for secret in (key, password, sent) if secret]
        self.usage = Usage()
        self._concurrency = concurrency
        self._attempts = attempts
        self._first_wait_s = first_wait_s
        self._lock = threading.Lock()
        self._client = httpx.Client(
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            headers={"Authorization": f"Bearer {key}"} if key and auth is None else {},
            auth=auth,
        )

    def ask_all(self, items: Sequence[Item], body: Callable[[Item], dict[str, Any]]) -> list[Generation | Exception]:
        """One answer per item, in order, as `ask_each` gets them."""
        answers = dict(self.ask_each(items, body))
        return [answers[place] for place in range(len(items))]

    def ask_each(
        self, items: Sequence[Item], body: Callable[[Item], dict[str, Any]]
    ) -> Iterator[tuple[int, Generation | Exception]]:
        """The place of each item with its answer, as they come; an exception stands where one finally failed.

        `body` makes the JSON of a request, without the model's name, in the thread that sends it. When the
        endpoint itself is at fault (unreachable after all attempts, key refused, no such model), what is not yet
        sent fails with the same `EndpointError` at once. Whoever stops early waits only for requests under way.
        """
        fault: list[EndpointError] = []

        def answer(item: Item) -> Generation | Exception:
            if fault:
                return fault[0]
            try:
                return self._retrying({"model": self.model, **body(item)})
            except EndpointError as exc:
                fault.append(exc)
                return exc
            except GenerationError as exc:
                return exc

        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="endpoint")
        try:
            places = {pool.submit(answer, item): place for place, item in enumerate(items)}
            for future in as_completed(places):
                yield places[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _retrying(self, body: dict[str, Any]) -> Generation:
        backoff = tenacity.wait_random_exponential(multiplier=self._first_wait_s, max=_LONGEST_WAIT_S)

        def wait(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            named = error.retry_after if isinstance(error, _TransientError) else None
            return backoff(state) if named is None else min(named, _LONGEST_WAIT_S)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_TransientError),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=wait,
            before_sleep=lambda _: self._count(retries=1),
            reraise=True,
        )
        try:
            return retrying(self._ask, body)
        except _UnreachableError as exc:
            raise EndpointError(f"{exc}; is the server running?") from exc
        except _TransientError as exc:
            raise GenerationError(f"{exc}; gave up after {self._attempts} attempts") from exc

    def _ask(self, body: dict[str, Any]) -> Generation:
        self._count(requests=1)
        try:
            response = self._client.post(f"{self.base_url}/chat/completions", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise _UnreachableError(f"no answer from {self.base_url} ({exc})") from exc
        except httpx.HTTPError as exc:
            raise _TransientError(f"the connection to {self.base_url} broke ({type(exc).__name__})") from exc
        self._check_status(response)
        try:
            generation = _read(response)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            raise _TransientError(
                f"the endpoint answered something that is no completion: {self._told(response)[:200]!r}"
            ) from exc
        self._count(prompt_tokens=generation.prompt_tokens, completion_tokens=generation.completion_tokens)
        if not generation.text.strip():
            raise GenerationError(f"the model gave an empty answer ({generation.finish_reason})")
        return generation

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        said = " ".join(self._told(response)[:300].split())
        if status in _TRANSIENT_STATUS or status >= 500:
            raise _TransientError(f"{self.base_url} answered {status}: {said}", _retry_after(response))
        if status in {401, 403}:
            raise EndpointError(f"{self.base_url} refused the key ({status}); set {API_KEY_VARIABLE}")
        if status in _ENDPOINT_STATUS:
            raise EndpointError(f"{self.base_url} does not serve the model '{self.model}' ({status}: {said})")
        raise GenerationError(f"{self.base_url} refused the request ({status}: {said})")

    def _told(self, response: httpx.Response) -> str:
        """What a response says; an endpoint may repeat the key that it refuses."""
        text = response.text
        for secret in self._hidden:
            text = text.replace(secret, MASK)
        return mask(text)

    def _count(self, **numbers: int) -> None:
        with self._lock:
            for name, number in numbers.items():
                setattr(self.usage, name, getattr(self.usage, name) + number)


def _secrets() -> tuple[str | None, str | None]:
    """Key and password of endpoints, as far as they are set."""
    key, password = settings().llm_api_key, settings().llm_password
    return key.get_secret_value() if key else None, password.get_secret_value() if password else None


def _read(response: httpx.Response) -> Generation:
    answer: dict[str, Any] = response.json()
    choice = answer["choices"][0]
    text = choice["message"]["content"] or ""
    usage = answer.get("usage") or {}
    return Generation(
        text=str(text),
        prompt_tokens=int(usage.get("prompt_tokens", 0)),
        completion_tokens=int(usage.get("completion_tokens", 0)),
        finish_reason=str(choice.get("finish_reason") or "stop"),
    )


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait as the server says, as a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
