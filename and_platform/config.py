"""Settings: environment variables with the prefix `ANDP_`, or a `.env` file in the working folder.

Nothing here is read at import; `settings()` reads once per process.
"""

from __future__ import annotations

import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from and_platform.errors import ConfigError


class Settings(BaseSettings):
    """What a user can set from outside. Each field is `ANDP_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="ANDP_", env_file=".env", env_ignore_empty=True, extra="ignore")

    home: Path = Field(default_factory=lambda: Path(platformdirs.user_data_dir("andp", appauthor=False)))
    """Folder of the embedded database and of downloads. Default: the user's data folder."""

    models: Path | None = None
    """Folder of weights that are not on the model hub. Default: `models` in the folder above."""

    database_url: SecretStr | None = None
    """`postgresql://user:password@host/db` of a server of yours; unset: the embedded one."""

    start_timeout: float = 600.0
    """Seconds to wait for the embedded server; a recovery after a crash may be long."""

    connect_timeout: int = 10
    """Seconds to wait for a connection to a server."""

    statement_timeout: float = 0.0
    """Seconds after which a statement is cancelled; 0: never."""

    broker_url: SecretStr | None = None
    """Broker of the workers: `amqp://…`, `redis://…` or `pgmq://…`; unset: `pgmq://` in the database above."""

    visibility_timeout: int = 3600
    """Seconds after which an unfinished task goes to another worker; more than the longest task takes."""

    device: str = "auto"
    """Where models run: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto`."""

    batch_size: int = 16
    """Clips per forward pass of the network under study."""

    decode_processes: int = 0
    """Processes that decode and measure audio; 0: one per core."""

    materialise_cubes: bool = True
    """Keep the centred, cubed activations that `match_concepts(..., 'cos_cubed')` needs: 2 x the activations' size."""

    basic_adjectives: Annotated[list[str], NoDecode] = ["high-pitched", "high-quality", "clear", "loud"]
    """Adjectives that name basic acoustic features; all others are high-level (paper, 4.4). Separated by commas."""

    log_level: str = "WARNING"
    """Level of the log on stderr."""

    @property
    def models_folder(self) -> Path:
        """The folder of weights that are not on the model hub."""
        return (self.models or self.home / "models").expanduser()

    @field_validator("basic_adjectives", mode="before")
    @classmethod
    def _separated(cls, value: Any) -> Any:
        return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process.

    Raises
    ------
    ConfigError
        If a variable has a value that does not fit.
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
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
    except ValueError as exc:
        raise ConfigError(f"{path} is not valid JSON: {exc}") from exc
