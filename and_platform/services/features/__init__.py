"""Which acoustic features a network's neurons stand for, and whether they matter (paper, 4.4 and appendix C).

`adjectives` and `blocks` count words in SQL; `ablate` and `acoustics` are experiments, kept and not computed twice.
"""

from and_platform.services.features.ablation import SEEDS, SHARES, ablate
from and_platform.services.features.acoustics import DEFAULT_WORDS, MEASURES, acoustics, measures_of
from and_platform.services.features.words import adjectives, blocks

__all__ = [
    "DEFAULT_WORDS",
    "MEASURES",
    "SEEDS",
    "SHARES",
    "ablate",
    "acoustics",
    "adjectives",
    "blocks",
    "measures_of",
]
