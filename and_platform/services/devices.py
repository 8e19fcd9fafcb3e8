"""Which device models run on."""

from __future__ import annotations

from and_platform.config import settings
from and_platform.errors import ConfigError


def device(wanted: str | None = None) -> str:
    """The device that is named, else that of `ANDP_DEVICE`; `auto` takes the first GPU, else the CPU.

    Raises
    ------
    ConfigError
        The device asked for is not there.
    """
    import torch

    wanted = wanted or settings().device
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = wanted.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, False):
        raise ConfigError(f"the device is '{wanted}', which this machine does not have; set ANDP_DEVICE to cpu or auto")
    return wanted
