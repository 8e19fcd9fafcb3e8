"""Where the files that travel with the package are: SQL, migrations, sample data, concept sets, networks.

In a wheel all of them lie under `and_platform/_data/`; in a checkout `sql/` and `migrations/` lie beside the package.
"""

from __future__ import annotations

from pathlib import Path

from and_platform.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """The file or folder `name` ("sql/queries", "migrations", "sample", "concepts/esc50.txt").

    Raises
    ------
    ConfigError
        If this installation lacks it.
    """
    for root in (_PACKAGE / "_data", _PACKAGE.parent):
        path = root / name
        if path.exists():
            return path
    raise ConfigError(f"this installation lacks '{name}'; install and-platform again")
