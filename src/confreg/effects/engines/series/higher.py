"""Moments of higher orders, for the edits that push too hard for the second.

With û = u / max|u|, ĝ = gain·max|u| and one variable q (the logits, for the temperature), an
edit adds f = ĝ û + c q to the logits, up to what it adds to all of them, and

    A − 1 = Σ ĝᵏ cˡ / (k! l!) E[ûᵏ qˡ],   B = Σ ĝᵏ cˡ / (k! l!) E[y ûᵏ qˡ],
    C = Σ (k + l) ĝᵏ cˡ / (k! l!) E[ûᵏ qˡ]

over k + l up to an edit's order. û is not centred token by token: nothing cancels, and |û| ≤ 1.
Temperatures change little, so that few powers of q go with powers of û (`powers`).
`HigherMoments.errors` bounds all that is left out; the derivation is in docs/effects.md.
"""

import math

import torch

from .expectations import tail, without_sign
from .orders import Remainder, even, largest, powers, timesing
from .tuning import FEWER


class HigherMoments:
    """Joint moments under p of û with q, and with y and q, of some edits.

    Parameters
    ----------
    own : TokenMoments
    joint : JointMoments
        Whose moments are not computed again.
    directions : Directions
    rows, orders : Tensor (m,) int64
        The edits and their orders, the highest first.
    variable : VariableMoments
    """

    def __init__(self, own, joint, directions, rows, orders, variable):
        self.own = own
        self.variable = variable
        self.rows = rows
        self.orders = orders
        self.size = largest(directions)[rows, None]
        self.mean = joint.mean[rows]
        self.top = int(orders[0])
        self.counts = [int((orders >= k).sum()) for k in range(self.top + 1)]
        self.known(joint)
        self.collect(directions.u)

    def known(self, joint):
        """Take over from ``joint`` what it has: E[ûᵏ qˡ] and E[y ûᵏ qˡ] by k and l."""
        square, square_y = joint.uncentred_squares()
        q_y = joint.q_y["logits"] + joint.mean * self.own.q_y["logits"]
        both = {1: [joint.mean, joint.q["logits"]], 2: [square]}, {1: [joint.y, q_y], 2: [square_y]}
        if self.own.same:
            both = {1: [joint.mean, joint.y, q_y], 2: [square, square_y]}, {}
        self.moments, self.moments_y = (
            {k: [x[self.rows] / self.size**k for x in values] for k, values in kind.items()}
            for kind in both
        )

    def collect(self, u):
        """All other moments, block by block of the vocabulary."""
        own, same = self.own, self.own.same
        tokens = len(own.log_p)
        every = range(1, self.top + 1)
        missing = {k: powers(k) - len(self.moments.get(k, [])) for k in every}
        missing_y = {k: powers(k) - 1 - len(self.moments_y.get(k, [])) for k in every}
        found = {k: u.new_zeros(self.counts[k], missing[k] * tokens) for k in every}
        found_y = {k: u.new_zeros(self.counts[k], missing_y[k] * tokens) for k in every if not same}
        for some in own.blocks:
            p, py, variables = own.weights(some)
            q = variables["logits"]
            columns = torch.cat(list(timesing(p, q, powers(1))))
            columns_y = (
                columns[tokens:] if same else torch.cat(list(timesing(py, q, powers(1) - 1)))
            )
            part = u[:, some].index_select(0, self.rows).div_(self.size)
            power = part.clone()
            for k in every:
                power = power[: self.counts[k]]
                if k > 1:
                    power.mul_(part[: len(power)])
                last = powers(k)
                add(found[k], power, columns[(last - missing[k]) * tokens : last * tokens])
                if not same:
                    some_y = slice((last - 1 - missing_y[k]) * tokens, (last - 1) * tokens)
                    add(found_y[k], power, columns_y[some_y])
        for k in every:
            self.moments.setdefault(k, []).extend(found[k].split(tokens, 1))
            if same:
                self.moments_y[k] = self.moments[k][1:]
            else:
                self.moments_y.setdefault(k, []).extend(found_y[k].split(tokens, 1))

    def sums(self, gain, c):
        """A − 1, B and C of one pathway, and bounds on their errors: (m, T) each.

        Parameters
        ----------
        gain, c : Tensor (n, T)
            Of all edits.
        """
        g, c = gain[self.rows] * self.size, c[self.rows]
        a, b, d = (torch.zeros_like(g) for _ in range(3))
        moved = bool(c.any())
        for k in range(self.top + 1):
            alone = k == 0
            for j in range(self.top + 1 - k if alone else powers(k)):
                order = k + j
                if order == 0 or order > self.top or (j and not moved):
                    continue
                m = self.counts[order]
                factor = term(g[:m], k) * term(c[:m], j)
                x = factor * (self.variable.q[j] if alone else self.moments[k][j][:m])
                a[:m] += x
                d[:m] += order * x
                if alone:
                    b[:m] += factor * self.variable.y[j]
                elif j < powers(k) - 1:
                    b[:m] += factor * self.moments_y[k][j][:m]
        return a, b, d, self.errors(g, c, moved)

    def errors(self, g, c, moved):
        """Bounds on the errors of A, B and C."""
        parts = []
        orders, counts = self.orders.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        for order, count, end in zip(orders.tolist(), counts.tolist(), ends):
            rest = self.remainder(g, c, slice(end - count, end), even(order))
            parts.append(rest.errors(order))
        error_a, error_b, error_c = (torch.cat(same) for same in zip(*parts))
        rest = self.remainder(g, c, slice(None), 2)
        grown = rest.most.exp()
        # Sums of float32: some units in their last place.
        rounding = 3e-7 * grown * rest.moment.sqrt()
        error_a, error_b = error_a + rounding, error_b + 3e-7 * grown * rest.moment_y.sqrt()
        error_c = error_c + rounding
        if moved:
            crossed = self.crossed(g.abs(), c.abs())
            error_a, error_b, error_c = (
                x + y for x, y in zip((error_a, error_b, error_c), crossed)
            )
        return error_a, error_b, error_c

    def crossed(self, g, c):
        """Bounds on what products with more powers of q than there are add to A, B and C."""
        most = c * self.own.reach["logits"][:, 0]
        a = b = d = torch.zeros_like(g)
        for k, j in FEWER:
            square = self.squares(k)
            x, x_early = (from_on(g, k, g, n) for n in (k, k - 1))
            # E[|û|ᵏ qʲ] by the inequality of Cauchy and Schwarz.
            moment = (square * self.variable.q[2 * j - 2]).sqrt()
            moment_y = (square * self.variable.steep[2 * j - 4]).sqrt()
            a = a + x * from_on(c, j, most, j) * moment
            b = b + x * from_on(c, j - 1, most, j - 1) * moment_y
            # A term counts its order times.
            d = d + (k + j) * x_early * from_on(c, j, most, j - 1) * moment
        return a, b, d

    def squares(self, k):
        """E[û²ᵏ q²], (m, T), or of a lower power of û: no less, as |û| ≤ 1."""
        out = self.moments[2][2][:0]
        for power in range(min(2 * k, even(self.top)), 0, -2):
            out = torch.cat((out, self.moments[power][2][len(out) :]))
        return out.clamp_min(0)

    def remainder(self, g, c, some, power):
        """`Remainder` of some of the edits, from one of the moments."""
        u, u_y = (kind[power][0][some] for kind in (self.moments, self.moments_y))
        u = u.clamp_min(0)
        u = u, without_sign(self.own.peak[:, 0], u, u_y)
        most_q, q = self.own.reach["logits"][:, 0], self.variable.even(self.own, power)
        return Remainder(g[some], c[some], most_q, power, u, q)


def term(x, k):
    """xᵏ/k!"""
    out = torch.ones_like(x)
    for i in range(1, k + 1):
        out = out * x / i
    return out


def from_on(x, n, most, start):
    """Σ (x z)ᵏ/k! over k ≥ n, as a multiple of zⁿ, where x z ≤ ``most``: with ``start`` n; of k/n
    times the terms with one less."""
    return x.pow(n) / math.factorial(n) * tail(most, start)


def add(sums, power, columns):
    """Add a slice's products of powers of û with columns (K, v) of p."""
    if len(columns):
        sums.addmm_(power, columns.T)
