"""Secrets in texts: passwords, tokens and keys, by the names before them and by their own shapes.

What people log and what libraries raise holds them in many spellings: URLs, headers, JSON, command lines, SQL. Each rule
below reads a text once, from left to right, in time that is linear in its length: every repetition is bounded or
consumes what it has read. The shapes of providers' keys are facts that the providers publish
(docs/decisions/0016-secrets.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

MASK = "***"

_LONGEST_READ = 262_144
"""Characters of a text that are looked at; what is beyond is dropped, since nothing has looked for secrets there."""

LONGEST_REASON = 4_000
"""Characters of a reason that is stored."""
LONGEST_DETAIL = 32_000
"""Characters of what stands behind a reason: a traceback, an answer of a model."""

# A name before a secret, a separator, and the secret.
_NAME = (
    r"(?:password|passwd|pwd|passphrase|passcode|secret|credentials?|connection[_-]?string"
    r"|(?:api|access|secret|private|signing|account|shared|encryption|master|service|subscription)[_-]?key"
    r"|(?:access|auth|refresh|session|api|hf|hub|id|bearer|security|csrf|xsrf|vault|bot|private|personal|npm|pypi)"
    r"[_-]?token|\btoken|shared[_-]?access[_-]?signature)"
)
_QUOTE = r"\\{0,7}[\"']"
_VALUE = (
    r"(?:\\{1,7}\"[^\"\n]{0,8192}\"?|\\{1,7}'[^'\n]{0,8192}'?"
    r"|\"(?:[^\"\\\n]|\\.){0,8192}\"?|'(?:[^'\\\n]|\\.){0,8192}'?"
    # A comma or bracket inside belongs to it; one at its end, or before the next name, does not.
    r"|(?:[^\s\"',;&)}\]]|,(?!\s|\w{1,40}\s?[=:])|[)}\]](?=[^\s,;)}\]\"'])){1,8192})"
)
_QUERY = (
    r"(?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|signature|sig|awsaccesskeyid"
    r"|key-pair-id|policy|auth|jwt|code|key|apikey|token|subscription-key)"
)
_FLAG = (
    r"(?:api-?key|access-?key|secret-?key|password|passwd|pass|token|secret|[a-z]{1,20}-(?:key|token|password|secret))"
)

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


def _url(match: re.Match[str]) -> str:
    """Mask the user information of a URL, up to the last @: rather a host too few than a password too many."""
    scheme, rest = match["scheme"], match["rest"]
    information, at, host = rest.rpartition("@")
    user, colon, password = information.partition(":")
    if not at or "/" in user or "?" in user or "#" in user:
        return match.group()
    if colon:
        return f"{scheme}{user}:{MASK}@{host}" if password else match.group()
    # A user without a password: a plain name is no secret, a token that stands for one is.
    if scheme.lower().endswith(("http://", "https://")) and not _PLAIN_NAME.fullmatch(user):
        return f"{scheme}{MASK}@{host}"
    return match.group()


_PLAIN_NAME = re.compile(r"[a-z][a-z._-]{0,15}")

_RULES: tuple[Rule, ...] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
            r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
            re.DOTALL,
        ),
        MASK,
    ),
    (re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30}://)(?P<rest>[^\s\"'<>]+)", re.I), _url),
    (
        re.compile(
            rf"(\bauthorization(?:{_QUOTE})?\s{{0,8}}[=:]\s{{0,8}}(?:{_QUOTE})?)"
            r"(?:(?:digest|aws4-hmac-sha256|hawk|signature)\s[^\n]{1,8192}"
            r"|((?:basic|bearer|token|negotiate|apikey|bot)\s{1,8})?[^\s\"',;\\]{1,8192})",
            re.I,
        ),
        lambda match: f"{match[1]}{match[2] or ''}{MASK}",
    ),
    (re.compile(r"(\b(?:set-)?cookie(?:\\{0,7}[\"'])?\s{0,8}:\s{0,8})[^\n\"']{1,8192}", re.I), rf"\1{MASK}"),
    (re.compile(r"(\bbearer\s{1,8})[A-Za-z0-9._~+/=-]{8,}", re.I), rf"\1{MASK}"),
    (re.compile(rf"([?&;]{_QUERY}=)[^\s&\"'<>;]{{1,8192}}", re.I), rf"\1{MASK}"),
    (
        re.compile(
            rf"((?<![\w-])--?{_FLAG}(?:\"|')?[\s=,]{{1,4}})(?!-)(?:[\"'][^\"'\n]{{0,8192}}[\"']?|[^\s\"',;)\]]+)", re.I
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(\s--?u(?:ser)?[ =][\"']?[^\s:\"'/]{1,128}:)[^\s\"']{1,8192}"), rf"\1{MASK}"),
    (
        re.compile(rf"({_NAME}(?:{_QUOTE})?\s{{0,8}}(?:[=:]|%3[ad])\s{{0,8}})(?!{re.escape(MASK)}){_VALUE}", re.I),
        rf"\1{MASK}",
    ),
    (re.compile(r"(\b(?:password|identified by)\s{1,8})'(?:[^'\n]|''){0,8192}'?", re.I), rf"\1{MASK}"),
    (re.compile(r"(\blogin\s{1,8}\S{1,255}\s{1,8}password\s{1,8})\S{1,8192}", re.I), rf"\1{MASK}"),  # .netrc
    (
        re.compile(r"^([^\s:]{1,255}:(?:\d{4,5}|\*):[^\s:]{1,255}:[^\s:]{1,255}:)\S{1,8192}$", re.M),
        rf"\1{MASK}",
    ),  # .pgpass
    (
        re.compile(r"(hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/)[\w/-]{1,8192}"),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}"), MASK),
    (re.compile(r"\b(?:sk|pk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{16,}"), MASK),
    (
        re.compile(
            r"\b(?:hf_|api_org_|gh[opsur]_|github_pat_|glpat-|gldt-|xox[a-z]-|xapp-|npm_|pypi-|dckr_pat_|sntrys_|shp(?:at|ss|ca)_"
            r"|glsa_|hvs\.|gsk_|r8_|nvapi-|lin_api_|figd_|secret_|tskey-|dop_v1_|AGE-SECRET-KEY-|SG\.|ya29\.)"
            r"[A-Za-z0-9_.-]{16,}"
        ),
        MASK,
    ),
    (re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"), MASK),
    (re.compile(r"\bAIza[A-Za-z0-9_-]{35}"), MASK),
    (re.compile(r"\bdapi[0-9a-f]{32}\b"), MASK),
    (re.compile(r"\b\d{8,10}:AA[A-Za-z0-9_-]{33}\b"), MASK),  # a Telegram bot
    (re.compile(r"\beyJ[\w-]{4,}\.[\w-]+(?:\.[\w-]*){0,3}"), MASK),
)


def mask(text: str) -> str:
    """Return a text without passwords, tokens and keys; `***` stands in their place.

    Of a text of more than 262,144 characters the rest is dropped.
    """
    text = text[:_LONGEST_READ]
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def reason_of(text: str, longest: int = LONGEST_REASON) -> str:
    """Return why something failed, as it may be stored and shown: without secrets, and bounded."""
    return shortened(mask(text), longest)


def shortened(text: str, longest: int) -> str:
    """Return a text, without its middle where it is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters left out … {text[-half:]}"


def names_a_secret(name: str) -> bool:
    """Return whether what stands under this name is a password or a key."""
    return mask(f"{name}=x") != f"{name}=x"


def masked(value: Any) -> Any:
    """Return a value of JSON with `mask` applied to all its texts.

    What stands under the name of a secret is one, whatever it looks like.
    """
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        # `{"password": "x"}` has the secret in a value of its own, so name and value are judged together.
        return {key: _masked_member(str(key), member) for key, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(member) for member in value]
    return value


def _masked_member(key: str, value: Any) -> Any:
    if isinstance(value, str) and value and mask(joined := f"{key}={json.dumps(value)}") != joined:
        return MASK if mask(value) == value else mask(value)
    return masked(value)
