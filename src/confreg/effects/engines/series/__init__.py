"""The engine ``Series``: the closed form over all edits and tokens at once, with a bound.

For one token let p be the model's distribution, y = log p + H its centred log-probability and
f = g u + Σ_j c_j q_j, less its mean under p, what an edit adds to the logits. With

    A = E_p[e^f],   B = E_p[y e^f],   C = E_p[f e^f]

the loss changes by log A − f(target), the entropy by log A − (B + C)/A, and D(p_freq ‖ p) by
log A − E_freq[f]. Three stages give them:

1. Up to second order in f, from joint moments of p with u and u²: a few matrix products for all
   edits and tokens. Taylor's remainder bounds every pair's error. For edits where it exceeds
   the tolerance often, again up to an order at which it seldom does (`higher`, `orders`).
2. Where the bound of second order exceeds the tolerance: what lies beyond is summed exactly over
   the token's likeliest vocabulary entries, band by band (`bands`); the bound counts the rest only.
3. Where it still exceeds the tolerance, or that of a higher order does: the exact sums.

The derivation is in docs/effects.md. Its symbols here:

======== ============================================================================
u        `algebra.Directions.u` (n, V): what an edit adds to raw logits per unit of gain
p, y     `moments.TokenMoments`: exp(log_p), and log_p + entropy (T, V)
f        what an edit adds to a token's logits, less its mean under p
g        `Coefficients.gain` times the logit scale; `pathway.Pathway.gain` (n, T)
c_j      `Coefficients.by_variable`, `pathway.Pathway.coefficients`: by variable (n, T)
q_j      `algebra.Unablated.variables`, by name: logits, post_norm (μ), frequency (v)
A, B, C  `expectations.Expectations.a, b, c` (n, T)
H        `moments.TokenMoments.entropy` (T, 1)
D        (B + C)/A: `expectations.Expectations.excess`
E[u q]   `moments.JointMoments`: moments of u with y and the variables (n, T)
û, ĝ     u/max|u| and g·max|u|: `higher.HigherMoments`; max|u| is its ``size``
E[qˡ]    `orders.VariableMoments`
h, R     `orders.Remainder`: |ĝ û| + |c q|, and what orders beyond one add
τₙ(r)    `expectations.tail`
S        the part of the vocabulary that is not summed exactly: all, or what `bands` leaves
======== ============================================================================
"""

from ..closed import close
from ..several import several
from .stages import Stages


class Series:
    """The closed form of all edits at all tokens at once: last layer, measures that are tilted.

    For effects whose measure is not `Measure.tilted`, behind a softcap, and for edits that write
    into several directions it does what the engine ``Exact`` does.

    Parameters
    ----------
    tolerance : float
        Nats: the error bound beyond which a pair is left to the exact sums.
    """

    copies = False

    def __init__(self, tolerance=1e-5):
        self.tolerance = tolerance

    def fill(self, tally, observed, clean):
        """Find all effects; ``clean`` are measures of the unedited model, (T,) each."""
        if getattr(observed.edits, "rank", 1) == 1:
            close(tally, observed, Stages(self.tolerance), approximate=True)
        else:
            several(tally, observed, clean)
