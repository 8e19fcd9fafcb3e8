"""What every captioner does around its model: clips at its rate, refusals and empty answers told from captions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from and_platform.backends.base import Clip
from and_platform.errors import AudioError, GenerationError

_AUDIO = r"(?:audio|(?:sound |audio )?(?:clip|file|recording|attachment)s?)\b"
# Not every "I cannot" refuses ("I cannot tell which bird it is, but ..."): it depends on what cannot be done.
_CANNOT = (
    r"i(?: cannot| can't| can not| could not| couldn't|(?: am|'m) (?:unable|not able) to| don't have the ability to)"
    r"(?: directly| actually| currently| really)?"
    r"(?:\W*$| (?:listen|process|access|analy[sz]e|assist|help|comply|fulfill?|transcribe|describe|provide|open|play)\b"
    r"| do (?:that|this|so)\b| hear (?:or|and|sounds?\W*$|(?:(?:any|the|your|this|that) )?" + _AUDIO + "))"
)
_LACKS = r"i (?:have not|haven't|did not|didn't|do not|don't) (?:received?|have|get|see|support)\b"
_REFUSAL = re.compile(
    r"^\W*(?:(?:i'm |i am )?(?:very |so )?sorry[\s,.;:!]+(?:but|however|i|i'm|as|no|for|about|there|we|you|your|this|that|the "
    + _AUDIO
    + r")\b|i apologi[sz]e\b|my apologies\b"
    rf"|(?:but )?{_CANNOT}|unfortunately,? (?:{_CANNOT}|{_LACKS})|as an? (?:ai|(?:large )?language model|text-based)\b"
    r"|(?:please|you (?:need|have) to) (?:provide|upload|share|attach) (?:me |us )?(?:with )?(?:the|an|your) audio\b)",
    re.IGNORECASE,
)
# Words that are quoted at the start and followed by others are heard: '"Sorry," a man says.'
_QUOTED = re.compile(
    r"""^\W{0,20}(?:["\u201c][^"\u201d]{0,500}["\u201d]|['\u2018].{0,500}?[,.!?]['\u2019])\W{0,20}\w""", re.DOTALL
)
_SHOWN = 80


def check_rate(clips: Sequence[Clip], rate: int | None) -> None:
    """Make sure that clips come as the captioner hears.

    Raises
    ------
    AudioError
        If a clip does not come at `rate` Hz (None: any), or has no samples.
    """
    for clip in clips:
        if rate is not None and clip.rate != rate:
            raise AudioError(f"{clip.key} comes at {clip.rate} Hz, the captioner needs {rate} Hz; resample it")
        if clip.waveform.size == 0:
            raise AudioError(f"{clip.key} has no samples")


def check_captions(clips: Sequence[Clip], captions: Sequence[str | Exception]) -> list[str | Exception]:
    """Captions without white space around them; a GenerationError in the place of one that is none.

    Parameters
    ----------
    clips, captions
        What was heard, and what the model said of it, in the same order. Exceptions stay as they are.

    Returns
    -------
    list
        One per clip. An empty answer and a refusal ("I'm sorry, but I cannot listen to audio") are no captions:
        they would go on to summaries and concepts as if they said something of the sound.
    """
    return [
        said if isinstance(said, Exception) else _caption_or_error(clip, said.strip())
        for clip, said in zip(clips, captions, strict=True)
    ]


def _caption_or_error(clip: Clip, said: str) -> str | GenerationError:
    if not said:
        return GenerationError(f"the captioner said nothing about {clip.key}")
    if not _QUOTED.match(said) and _REFUSAL.match(said.replace("\u2019", "'")):
        return GenerationError(f"the captioner refused to describe {clip.key}: {said[:_SHOWN]}")
    return said
