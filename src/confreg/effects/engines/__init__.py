"""The engines, and which of them fits: objects that a `Unit` holds.

Each has ``copies``, whether the text is run once more for every edit, and
``fill(tally, observed, clean)``, which finds the unit's effects. A unit carries its engine's source
to a server, and no other engine's.
"""

from .exact import Exact
from .forward import Forward
from .series import Series

__all__ = ["Exact", "Forward", "Series", "fitting"]


def fitting(edits, effects, last_layer, tolerance=1e-5):
    """The fastest engine that can: forward interventions, exact sums, or the series.

    Parameters
    ----------
    edits : Replace, Together ...
    effects : sequence of Effect
    last_layer : bool
        Whether nothing but the final norm and the unembedding comes after the edits.
    tolerance : float
        Of ``Series``, in nats.
    """
    measures = [effect.measure for effect in effects]
    closed = last_layer and getattr(edits, "writes", None) is not None
    single = getattr(edits, "rank", 1) == 1
    # Pair by pair edits into one direction are summed without the norm's scale at hand.
    if not closed or (single and any("norm_scale" in one.given for one in measures)):
        return Forward()
    if single and any(one.tilted for one in measures):
        return Series(tolerance)
    return Exact()
