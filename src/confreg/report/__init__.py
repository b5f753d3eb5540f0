"""Plots and the HTML report.

``write`` makes the page; ``figures`` holds its figures, for notebooks; ``section`` adds a
part to it.
"""

from confreg.report import aligned, attention, figures, groups, profiles
from confreg.report.page import write
from confreg.report.sections import Figure, Section, section

__all__ = [
    "Figure",
    "Section",
    "aligned",
    "attention",
    "figures",
    "groups",
    "profiles",
    "section",
    "write",
]
