"""Names of classes, labels and concepts, brought to one form so that they can be compared.

Data sets write the same sound as `door_wood_knock`, `Door-wood knock` or `door wood knock`. The normalised
form decides what is the same; callers keep the name as written beside it.
"""

from __future__ import annotations

import re
import unicodedata

# The hyphens and dashes of Unicode are treated as "-": they come with text pasted from a document.
_SEPARATORS = re.compile(r"[\s_/\-\u2010-\u2015\u2212]+")


def normalise(name: str) -> str:
    """Bring a name to the form in which names are compared.

    Compatibility forms and case are folded as Unicode defines it for caseless matching (standard, section
    3.13, definition D146), composed again (NFKC); `_`, `-`, `/` and white space of any length become one
    space.

    Parameters
    ----------
    name : str
        A name as written: `"vacuum_cleaner"`, `"Male speech, man speaking"`.

    Returns
    -------
    str
        The normalised name; empty if the name holds nothing but separators. `normalise` of it is itself.
    """
    folded = unicodedata.normalize("NFD", name).casefold()
    folded = unicodedata.normalize("NFKD", folded).casefold()
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", folded)).strip()


def same_name(a: str, b: str) -> bool:
    """Whether two names are the same after `normalise`."""
    return normalise(a) == normalise(b)
