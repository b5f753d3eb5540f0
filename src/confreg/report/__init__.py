"""Plots and the HTML report.

``write`` makes the page; ``figures`` holds its figures, for notebooks; ``section`` adds a
part to it.
"""

# Sections appear on the page in the order in which these modules register them.
from confreg.report import atlas, comparison  # isort: skip
from confreg.report import aligned, attention, conflicts, doses  # isort: skip
from confreg.report import groups, grouped  # isort: skip  # noqa: F401
from confreg.report import neurons, census, reliability, exactness, jobs  # isort: skip  # noqa: F401
from confreg.report import figures, maps, profiles, styling
from confreg.report.page import write
from confreg.report.sections import Figure, Section, section

__all__ = [
    "Figure",
    "Section",
    "aligned",
    "atlas",
    "attention",
    "census",
    "comparison",
    "conflicts",
    "doses",
    "figures",
    "groups",
    "maps",
    "neurons",
    "profiles",
    "section",
    "styling",
    "write",
]
