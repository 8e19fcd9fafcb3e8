"""Settings: environment variables with the prefix `ANDP_`, a file of such lines that is named, or files of secrets.

Nothing here is read at import; `settings()` reads once per process. A `.env` that merely lies in the working folder is not
read: it could send commands to a database of somebody else's.
"""

from __future__ import annotations

import json
import os
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from and_platform.errors import ConfigError


class Settings(BaseSettings):
    """What a user can set from outside. Each field is `ANDP_<NAME>` in the environment.

    Or the file `andp_<name>` in the folder that `ANDP_SECRETS_DIR` names (default: /run/secrets, where Docker puts them;
    Kubernetes mounts a secret anywhere). The environment goes first.
    """

    model_config = SettingsConfigDict(env_prefix="ANDP_", env_ignore_empty=True, extra="ignore")

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("andp", appauthor=False)))
    """Folder of the embedded database and of downloads. Default: the user's data folder."""

    models: Path | None = None
    """Folder of weights that are not on the model hub. Default: `models` in the folder above."""

    database_url: SecretStr | None = None
    """`postgresql://user:password@host/db` of a server of yours; unset: the embedded one."""

    reader_url: SecretStr | None = None
    """The same database as a user who only reads: `andp sql` connects with it. Unset: see the page on own servers."""

    start_timeout: float = 600.0
    """Seconds to wait for the embedded server; a recovery after a crash may be long."""

    connect_timeout: int = 10
    """Seconds to wait for a connection to a server."""

    pool_size: int = Field(default=4, ge=1)
    """Connections that a process keeps open. A worker that does one thing at a time needs 2."""

    pooler: bool = False
    """A pooler in transaction mode, such as PgBouncer, stands before the server: nothing is kept in a session."""

    application_name: str = "andp"
    """What `pg_stat_activity` calls this program's connections; workers say more behind it."""

    statement_timeout: float = 0.0
    """Seconds after which a statement is cancelled; 0: never."""

    lock_timeout: float = 0.0
    """Seconds after which a statement that waits for a lock is cancelled; 0: never."""

    idle_timeout: float = 0.0
    """Seconds after which the server ends a connection that idles in a transaction; 0: never."""

    reconnect_timeout: float = 120.0
    """Seconds for which a worker tries again after the server was lost, before its unit fails."""

    broker_url: SecretStr | None = None
    """Broker of the workers: `amqp://…`, `redis://…` or `pgmq://…`; unset: `pgmq://` in the database above."""

    llm_api_key: SecretStr | None = None
    """Key of OpenAI-compatible endpoints, sent to those that the user names and kept nowhere."""

    llm_password: SecretStr | None = None
    """Password of endpoints whose address holds a user but no password: `http://user@host/v1`."""

    visibility_timeout: Annotated[int, Field(gt=0)] | None = None
    """Seconds after which an unfinished unit goes to another worker, in all queues; more than twice the longest unit.
    Unset: 300 for `cpu`, 900 for `gpu` and `db`, 1800 for `llm`."""

    visibility_timeouts: Annotated[dict[str, Annotated[int, Field(gt=0)]], NoDecode] = {}
    """The same for single queues, before the one for all, as JSON: `{"gpu": 1800}`."""

    most_attempts: Annotated[int, Field(ge=1)] = 3
    """How often workers try a unit before it fails."""

    silent_after: Annotated[float, Field(gt=0)] = 30.0
    """Seconds after which a worker that is not heard of is taken for dead; it beats six times in them. The same everywhere."""

    queue_window: Annotated[int, Field(ge=1)] = 200
    """Messages of a run that are in a queue at a time; the rest waits in the database. Two for each process or more."""

    unit_size: Annotated[float, Field(gt=0)] = 1.0
    """Size of units of work: 0.5 makes them half as long. A unit should take well under a minute."""

    models_loaded: Annotated[int, Field(ge=1)] = 1
    """Models that a worker keeps in memory; the one that was not used for longest goes first."""

    warm_up: bool = True
    """A worker loads the models of open runs before it takes its first unit."""

    device: str = "auto"
    """Where models run: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`."""

    batch_size: int = 16
    """Clips per forward pass of the network under study."""

    decode_processes: int = 0
    """Processes that decode and measure audio; 0: one per core."""

    longest_clip: Annotated[float, Field(gt=0)] = 86_400.0
    """Seconds that a sound file may last; a longer one is a failure."""

    highest_rate: Annotated[int, Field(gt=0)] = 1_000_000
    """Samples a second that a sound file may have."""

    most_channels: Annotated[int, Field(gt=0)] = 64
    """Channels that a sound file may have."""

    largest_clip: Annotated[int, Field(gt=0)] = 4_294_967_296
    """Bytes of a sound file after decoding, 4 a sample of each channel: 3 hours of stereo at 44.1 kHz are 3.8e9."""

    materialise_cubes: bool = True
    """Keep the centred, cubed activations that `match_concepts(..., 'cos_cubed')` needs: 2 x the activations' size."""

    basic_adjectives: Annotated[list[str], NoDecode] = ["high-pitched", "high-quality", "clear", "loud"]
    """Adjectives that name basic acoustic features; all others are high-level (paper, 4.4). Separated by commas."""

    log_level: str = "WARNING"
    """Level of the log on stderr."""

    log_format: Literal["text", "json"] = "text"
    """The log on stderr: `text` for people, `json` for machines, one object a line."""

    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port on which a worker answers Prometheus; 0: any free one, told in the log; unset: no metrics."""

    metrics_address: str = "0.0.0.0"
    """Address of that port: `127.0.0.1` keeps it to this machine."""

    @property
    def models_folder(self) -> Path:
        """The folder of weights that are not on the model hub."""
        return (self.models or self.home / "models").expanduser()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in Python, the environment, the file of settings, the folder of secrets: the first with a value."""
        # Both are looked up now, not when this class is made.
        lines, folder = env_file(), secrets_folder()
        named = (DotEnvSettingsSource(settings_cls, env_file=lines, env_file_encoding="utf-8"),) if lines else ()
        secrets = (SecretsSettingsSource(settings_cls, folder),) if folder else ()
        return init_settings, env_settings, *named, *secrets

    @field_validator("visibility_timeouts", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as exc:
            raise ValueError('give JSON, e.g. {"gpu": 1800}') from exc

    @field_validator("basic_adjectives", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def secrets_folder() -> Path | None:
    """The folder with a file for each secret, if there is one.

    Raises
    ------
    ConfigError
        If `ANDP_SECRETS_DIR` names something else.
    """
    named = os.environ.get("ANDP_SECRETS_DIR")
    folder = Path(named or "/run/secrets")
    if folder.is_dir():
        return folder
    if named:
        raise ConfigError(f"ANDP_SECRETS_DIR is '{named}', which is no folder; put a file andp_database_url … in one")
    return None


ENV_FILE_VARIABLE = "ANDP_ENV_FILE"
"""Names the file of settings; child processes inherit it."""


def name_env_file(path: Path) -> None:
    """Read settings from this file, here and in child processes, wherever they run."""
    os.environ[ENV_FILE_VARIABLE] = str(path.expanduser().absolute())
    settings.cache_clear()


def env_file() -> Path | None:
    """The file of settings that `--env-file` or ANDP_ENV_FILE names; None where none is named.

    Raises
    ------
    ConfigError
        It is not there, or it is no text in UTF-8.
    """
    named = os.environ.get(ENV_FILE_VARIABLE)
    if not named:
        return None
    path = Path(named).expanduser()
    try:
        path.read_text("utf-8")
    except OSError as exc:
        raise ConfigError(
            f"cannot read the file of settings '{path}': {exc.strerror}; check --env-file and {ENV_FILE_VARIABLE}"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the file of settings '{path}' is not UTF-8; write it as lines ANDP_NAME=value") from exc
    return path


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process.

    Raises
    ------
    ConfigError
        If a variable has a value that does not fit, or the file of settings cannot be read.
    """
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors()[0]
        name = "ANDP_" + "_".join(str(part) for part in first["loc"]).upper()
        raise ConfigError(f"{name}: {first['msg']}") from exc


def load_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML config file.

    Raises
    ------
    ConfigError
        If the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read the config file {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}") from exc


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises
    ------
    ConfigError
        If the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path} is not valid JSON: {exc}") from exc
