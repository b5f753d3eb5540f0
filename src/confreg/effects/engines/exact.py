"""The engine ``Exact``: algebra at the last layer, pair by pair."""

from .closed import close
from .pairs import exact
from .several import several


class Exact:
    """The closed form of every edit at every token: last layer only, any measure of logits.

    Sums over the vocabulary for measures that follow from them (`Measure.tilted`), edited logits
    for the others. Float32, with a sample recomputed in float64.
    """

    copies = False

    def fill(self, tally, observed, clean):
        """Find all effects; ``clean`` are measures of the unedited model, (T,) each."""
        if getattr(observed.edits, "rank", 1) == 1:
            close(tally, observed, exact)
        else:
            several(tally, observed, clean)
