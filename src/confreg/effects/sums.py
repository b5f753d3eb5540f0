"""What the series knows of a pair: three expectations, and a bound on their error."""

import torch


class Sums:
    """A, B, C of some pairs, and what bounds their error: tensors of one shape.

    Attributes
    ----------
    a, b, c
        E_p[e^f], E_p[y e^f], E_p[f e^f].
    f2, y2
        E_p[f²] and E_p[y f²] over the part of the vocabulary that was not summed exactly.
    peak
        The largest y in that part.
    reach
        The largest |f| there can be.
    noise
        Rounding error of ``f2``.
    """

    def __init__(self, a, b, c, f2, y2, peak, reach, noise):
        self.a = a
        self.b = b
        self.c = c
        self.f2 = f2
        self.y2 = y2
        self.peak = peak
        self.reach = reach
        self.noise = noise

    def at(self, rows, token):
        """The pairs of some neurons with one token."""
        values = (self.a, self.b, self.c, self.f2, self.y2, self.reach, self.noise)
        a, b, c, f2, y2, reach, noise = (value[rows, token] for value in values)
        return Sums(a, b, c, f2, y2, self.peak[token], reach, noise)

    def only(self, rows):
        """Some of the pairs of one token."""
        values = (self.a, self.b, self.c, self.f2, self.y2, self.reach, self.noise)
        a, b, c, f2, y2, reach, noise = (value[rows] for value in values)
        return Sums(a, b, c, f2, y2, self.peak, reach, noise)

    def excess(self):
        """(B + C)/A: what the entropy falls short of log A by."""
        return (self.b + self.c) / self.a

    def remainder(self):
        """|f|³ e^|f| less E_p[f²]."""
        # Beyond 30, where e^|f| outgrows float32's E[f²], there is no bound: NaN.
        return self.reach * torch.where(self.reach < 30, self.reach.exp(), torch.nan)

    def loss_bound(self):
        """Bound on the loss's error: |e^f − 1 − f − f²/2| ≤ |f|³ e^|f| / 6, and A ≥ 1.

        The third absolute moment is at most reach · E[f²].
        """
        return self.remainder() * (self.f2 + self.noise) / 6 + self.noise

    def entropy_bound(self):
        """Bound on the errors of entropy and loss.

        The entropy's leading term is E_p[f³ (y + 2 − D)] / 6, D = B + C. What follows it is at most
        E_p[f⁴ e^|f| ((1 + |D| + |y|)/24 + 1/6)].
        """
        f2, d = self.f2 + self.noise, (self.b + self.c).abs()
        y = without_sign(self.peak, self.f2, self.y2)
        # |y + 2| is |y| − 2 where all y are below −2, as in most tails.
        leading = y + torch.where(self.peak < -2, -2, 2) * f2 + d * f2
        rest = (y + (1 + d) * f2) / 24 + f2 / 6
        bound = self.remainder() * (leading.clamp_min(0) / 6 + self.reach * rest)
        # Where y + 2 vanishes in the tail, the loss is the harder one.
        return torch.maximum(bound + (2 + d) * self.noise, self.loss_bound())


def without_sign(peak, moment, moment_y):
    """Bound on E[|y| x] from E[x] and E[y x], x ≥ 0, where y ≤ peak: |y| ≤ 2 max(peak, 0) − y."""
    return (2 * peak.clamp_min(0) * moment - moment_y).clamp_min(0)


def second_order(side, joint, gain, coefficients):
    """Stage 1: `Sums` (n, T) from moments up to second order."""
    f2 = gain.square() * joint.square
    y1 = gain * joint.y
    y2 = gain.square() * joint.square_y
    reach = gain.abs() * joint.reach
    for j, c in enumerate(coefficients):
        f2 = f2 + 2 * gain * c * joint.q[j]
        y1 = y1 + c * side.q_y[j]
        y2 = y2 + 2 * gain * c * joint.q_y[j]
        reach = reach + c.abs() * side.reach[j][:, 0]
        for k, other in enumerate(coefficients):
            f2 = f2 + c * other * side.qq[j][k]
            y2 = y2 + c * other * side.qq_y[j][k]
    f2 = f2.clamp_min(0)
    # E[u²] − E[u]² loses digits where a neuron moves all likely tokens alike.
    alike = (gain * joint.mean).abs()
    noise = 3e-7 * (alike.square() + alike.pow(3))
    a, b, c = 1 + f2 / 2, y1 + y2 / 2, f2.clone()
    return Sums(a, b, c, f2, y2, side.peak[:, 0], reach, noise)
