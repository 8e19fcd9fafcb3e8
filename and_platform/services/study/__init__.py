"""People's judgement of descriptions (paper, section 4.2 and Table 3): export a study, import answers, results."""

from and_platform.services.study.answers import Answers, Imported, import_file, read
from and_platform.services.study.catalogue import drop, find, overview
from and_platform.services.study.export import METHODS, Exported, export
from and_platform.services.study.judged import StudyResults, results, with_published

__all__ = [
    "METHODS",
    "Answers",
    "Exported",
    "Imported",
    "StudyResults",
    "drop",
    "export",
    "find",
    "import_file",
    "overview",
    "read",
    "results",
    "with_published",
]
