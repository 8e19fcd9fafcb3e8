"""Reports: a network, several networks side by side, or some neurons, as one HTML page with its tables and figures."""

from and_platform.services.report import formats
from and_platform.services.report.build import compare, network, write_stories
from and_platform.services.report.neurons import METHODS, Story, outputs, stories
from and_platform.services.report.work import SECTIONS, Options
from and_platform.services.report.writing import Report

__all__ = [
    "METHODS",
    "SECTIONS",
    "Options",
    "Report",
    "Story",
    "compare",
    "formats",
    "network",
    "outputs",
    "stories",
    "write_stories",
]
