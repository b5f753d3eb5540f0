"""What the series knows of a pair: three expectations, and a bound on their error."""

import torch


class Expectations:
    """A, B, C of some pairs, and what bounds their error: tensors of one shape.

    Parameters
    ----------
    table : Tensor (9, ...)
        `stacked`: one tensor, so that pairs are picked from it at once.
    peak : Tensor

    Attributes
    ----------
    a, b, c
        E_p[e^f], E_p[y e^f], E_p[f e^f].
    f2, y2
        E_p[f²] and E_p[y f²] over the part of the vocabulary that was not summed exactly.
    reach
        The largest |f| there can be.
    tail3, tail4
        `tail` of it.
    noise
        Rounding error of ``f2``.
    peak
        The largest y in the part that was not summed exactly.
    """

    def __init__(self, table, peak):
        self.table = table
        self.a, self.b, self.c, self.f2, self.y2, *bounding = table
        self.reach, self.tail3, self.tail4, self.noise = bounding
        self.peak = peak

    def at(self, rows, token):
        """The pairs of some edits with one token."""
        return Expectations(self.table[:, rows, token], self.peak[token])

    def only(self, rows):
        """Some of the pairs of one token."""
        return Expectations(self.table[:, rows], self.peak)

    def summed(self, a, b, c, f2, y2, peak):
        """With some of the vocabulary summed exactly: what that adds, and its second moments."""
        left = torch.maximum(self.f2 - f2, 1e-6 * self.f2)
        new = torch.stack((self.a + a, self.b + b, self.c + c, left, self.y2 - y2))
        return Expectations(torch.cat((new, self.table[len(new) :])), peak)

    def excess(self):
        """(B + C)/A: what the entropy falls short of log A by."""
        return (self.b + self.c) / self.a

    def loss_bound(self):
        """Bound on the loss's error: what follows f²/2 in e^f, and A ≥ 1.

        The third absolute moment is at most reach · E[f²].
        """
        return self.reach * self.tail3 * (self.f2 + self.noise) / 6 + self.noise

    def entropy_bound(self):
        """Bound on the errors of entropy and loss.

        The entropy's leading term is E_p[f³ (y + 2 − D)] / 6, D = B + C. What follows it is at most
        Σ E_p[|f|ᵏ ((1 + |D| + |y|)/k! + 1/(k − 1)!)] over k > 3.
        """
        f2, d = self.f2 + self.noise, (self.b + self.c).abs()
        y = without_sign(self.peak, self.f2, self.y2)
        # |y + 2| is |y| − 2 where all y are below −2, as in most tails.
        leading = y + torch.where(self.peak < -2, -2, 2) * f2 + d * f2
        rest = self.tail4 * (y + (1 + d) * f2) / 24 + self.tail3 * f2 / 6
        bound = self.reach * leading.clamp_min(0) / 6 + self.reach.square() * rest
        # Where y + 2 vanishes in the tail, the loss is the harder one.
        return torch.maximum(bound + (2 + d) * self.noise, self.loss_bound())


def stacked(a, b, c, f2, y2, reach, noise):
    """The table of `Expectations`."""
    return torch.stack((a, b, c, f2, y2, reach, tail(reach, 3), tail(reach, 4), noise))


def tail(h, n):
    """Σ hᵏ/k! over k ≥ n, as a multiple of hⁿ/n!: no more than this. NaN where h ≥ 30."""
    # Each term is at most h/(n + 1) times the one before; and hᵏ n!/(n + k)! is at most hᵏ/k!.
    shrinking = torch.where(h < n + 1, (n + 1) / (n + 1 - h), torch.inf)
    # Beyond, where e^h outgrows float32's sums, there is no bound.
    return torch.where(h < 30, torch.minimum(shrinking, h.exp()), torch.nan)


def without_sign(peak, moment, moment_y):
    """Bound on E[|y| x] from E[x] and E[y x], x ≥ 0, where y ≤ peak: |y| ≤ 2 max(peak, 0) − y."""
    return (2 * peak.clamp_min(0) * moment - moment_y).clamp_min(0)


def second_order(own, joint, gain, coefficients):
    """Stage 1: `Expectations` (n, T) from moments up to second order.

    Parameters
    ----------
    own : TokenMoments
    joint : JointMoments
    gain : Tensor (n, T)
    coefficients : dict of str to Tensor (n, T)
        c_j by variable.
    """
    f2 = gain.square() * joint.square
    y1 = gain * joint.y
    y2 = gain.square() * joint.square_y
    reach = gain.abs() * joint.reach
    for j, c in coefficients.items():
        f2 = f2 + 2 * gain * c * joint.q[j]
        y1 = y1 + c * own.q_y[j]
        y2 = y2 + 2 * gain * c * joint.q_y[j]
        reach = reach + c.abs() * own.reach[j][:, 0]
        for k, other in coefficients.items():
            f2 = f2 + c * other * own.qq[j, k]
            y2 = y2 + c * other * own.qq_y[j, k]
    f2 = f2.clamp_min(0)
    # E[u²] − E[u]² loses digits where an edit moves all likely tokens alike.
    alike = (gain * joint.mean).abs()
    noise = 3e-7 * (alike.square() + alike.pow(3))
    a, b, c = 1 + f2 / 2, y1 + y2 / 2, f2.clone()
    return Expectations(stacked(a, b, c, f2, y2, reach, noise), own.peak[:, 0])
