"""Moments of higher orders, for the neurons that push too hard for the second.

With û = u / max|u|, ĝ = gain·max|u| and one variable q (the logits, for the temperature), an
ablation adds f = ĝ û + c q to the logits, up to what it adds to all of them, and

    A − 1 = Σ ĝᵏ cˡ / (k! l!) E[ûᵏ qˡ],   B = Σ ĝᵏ cˡ / (k! l!) E[y ûᵏ qˡ],
    C = Σ (k + l) ĝᵏ cˡ / (k! l!) E[ûᵏ qˡ]

over k + l up to a neuron's order. û is not centred token by token: nothing cancels, and |û| ≤ 1.
Temperatures change little, so that few powers of q go with powers of û (`powers`). `Higher.errors`
bounds all that is left out; the derivation is in docs/effects.md.
"""

import torch

from .sums import without_sign

ORDERS = (3, 4, 5, 6, 8, 10)
EXACT, BANDED = 100.0, 50.0
"""Costs of a pair's exact sums and of its bands, in products of u with a column of p."""


def powers(k):
    """How many powers of q go with ûᵏ in A; in B one less."""
    return 4 if k < 3 else 3


class Reach:
    """How far the ablations of some pairs reach, and their second moments: tensors of one shape.

    Attributes
    ----------
    h : |ĝ| + |c| max|q|, which no |f| exceeds
    square, square_y : bounds on E[h²] and E[|y| h²], with h = |ĝ û| + |c q|
    """

    def __init__(self, side, g, c, square, square_y):
        q_square, q_square_y = side.qq[0][0], side.qq_y[0][0]
        g, c = g.abs(), c.abs()
        self.h = g + c * side.reach[0][:, 0]
        # Minkowski's inequality.
        self.square = (g * square.sqrt() + c * q_square.sqrt()).square()
        peak = side.peak[:, 0]
        root = without_sign(peak, square, square_y).sqrt()
        root_q = without_sign(peak, q_square, q_square_y).sqrt()
        self.square_y = (g * root + c * root_q).square()

    def remainder(self, order):
        """Σ hⁿ/n! over n > order is at most this much times h²."""
        h = torch.where(self.h < 30, self.h, torch.nan)  # beyond, float32 has no digits left
        return h.pow(order - 1) * h.exp() / torch.exp(torch.lgamma(torch.as_tensor(order + 2.0)))

    def errors(self, order):
        """Bounds on what the orders beyond ``order`` add to A, B and C."""
        rest = self.remainder(order)
        return rest * self.square, rest * self.square_y, (order + 1) * rest * self.square


def combined(a, d, errors, measured):
    """Bound on the effects' error from those of A, B and C; ``d`` is (B + C)/A."""
    error_a, error_b, error_c = errors
    least = a - error_a
    least = torch.where(least > 0, least, torch.nan)
    if "entropy" not in measured:
        return error_a / least
    return ((1 + d.abs()) * error_a + error_b + error_c) / least


def choose(side, joint, fan, variants, suspects, tolerance):
    """The neurons for which higher orders pay, and the orders: (m,) int64 each, highest first."""
    rows = (suspects.float().mean(-1) > 0.05).nonzero()[:, 0]
    size = largest(fan)[rows, None]
    square, square_y = (x[rows] / size.square() for x in joint.uncentred_squares())
    reaches = [
        Reach(side, v.gain[rows] * size, v.others[0][rows], square, square_y) for v in variants
    ]
    excesses = [v.sums.excess()[rows] for v in variants]
    costs = [BANDED * suspects[rows].float().mean(-1)]
    for order in ORDERS:
        left = torch.zeros_like(suspects[rows])
        for variant, reach, d in zip(variants, reaches, excesses):
            left |= ~(combined(1, d, reach.errors(order), variant.columns) <= tolerance)
        columns = sum(
            2 * powers(k) - 1 if not side.same else powers(k) for k in range(1, order + 1)
        )
        costs.append(columns + EXACT * left.float().mean(-1))
    best = torch.stack(costs).argmin(0)
    orders = torch.tensor((2, *ORDERS), device=rows.device)[best]
    orders, place = orders.sort(descending=True)
    count = int((orders > 2).sum())
    return rows[place[:count]], orders[:count]


def largest(fan):
    """Largest |u| of each neuron, (n,)."""
    return torch.maximum(fan.high.abs(), fan.low.abs()).clamp_min(1e-30)


class Higher:
    """Joint moments under p of û with q, and with y and q, of some neurons.

    Parameters
    ----------
    side : Side
    joint : Joint
        Whose moments are not computed again.
    fan : Fan
    rows, orders : Tensor (m,) int64
        The neurons and their orders, the highest first.
    """

    def __init__(self, side, joint, fan, rows, orders):
        self.side = side
        self.rows = rows
        self.orders = orders
        self.size = largest(fan)[rows, None]
        self.mean = joint.mean[rows]
        self.top = int(orders[0])
        self.counts = [int((orders >= k).sum()) for k in range(self.top + 1)]
        self.known(joint)
        self.collect(fan.u)

    def known(self, joint):
        """Take over from ``joint`` what it has: E[ûᵏ qˡ] and E[y ûᵏ qˡ] by k and l."""
        square, square_y = joint.uncentred_squares()
        q_y = joint.q_y[0] + joint.mean * self.side.q_y[0]
        both = {1: [joint.mean, joint.q[0]], 2: [square]}, {1: [joint.y, q_y], 2: [square_y]}
        if self.side.same:
            both = {1: [joint.mean, joint.y, q_y], 2: [square, square_y]}, {}
        self.moments, self.moments_y = (
            {k: [x[self.rows] / self.size**k for x in values] for k, values in kind.items()}
            for kind in both
        )

    def collect(self, u):
        """All other moments, block by block of the vocabulary."""
        side, same = self.side, self.side.same
        tokens = len(side.log_p)
        zero = torch.zeros_like(side.log_p[:, 0])
        # E[qˡ], E[y qˡ] and E[y² q⁴]. Where q is y, they are powers of y.
        self.alone = [zero] * (self.top + 4)
        self.alone_y, self.steep = [zero] * (self.top + 3), zero
        every = range(1, self.top + 1)
        missing = {k: powers(k) - len(self.moments.get(k, [])) for k in every}
        missing_y = {k: powers(k) - 1 - len(self.moments_y.get(k, [])) for k in every}
        found = {k: u.new_zeros(self.counts[k], missing[k] * tokens) for k in every}
        found_y = {k: u.new_zeros(self.counts[k], missing_y[k] * tokens) for k in every if not same}
        for some in side.blocks:
            p, py, (q, *_) = side.weights(some)
            columns, columns_y = [p], [py]
            for _ in self.alone[1:]:
                columns.append(columns[-1] * q)
            self.alone = [x + column.sum(-1) for x, column in zip(self.alone, columns)]
            if not same:
                for _ in self.alone_y[1:]:
                    columns_y.append(columns_y[-1] * q)
                self.alone_y = [x + column.sum(-1) for x, column in zip(self.alone_y, columns_y)]
                y = side.log_p[:, some] + side.entropy
                self.steep = self.steep + (columns_y[4] * y).sum(-1)
            part = u[:, some].index_select(0, self.rows).div_(self.size)
            power = part
            for k in every:
                power = power[: self.counts[k]]
                power = power * part[: len(power)] if k > 1 else power
                add(found[k], power, columns[powers(k) - missing[k] : powers(k)])
                if not same:
                    add(found_y[k], power, columns_y[powers(k) - 1 - missing_y[k] : powers(k) - 1])
        if same:
            self.alone_y, self.steep = self.alone[1:], self.alone[6]
        for k in every:
            self.moments.setdefault(k, []).extend(found[k].split(tokens, 1))
            if same:
                self.moments_y[k] = self.moments[k][1:]
            else:
                self.moments_y.setdefault(k, []).extend(found_y[k].split(tokens, 1))

    def sums(self, gain, c):
        """A − 1, B and C of one variant, and bounds on their errors: (m, T) each.

        Parameters
        ----------
        gain, c : Tensor (n, T)
            Of all neurons.
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
                x = factor * (self.alone[j] if alone else self.moments[k][j][:m])
                a[:m] += x
                d[:m] += order * x
                if alone:
                    b[:m] += factor * self.alone_y[j]
                elif j < powers(k) - 1:
                    b[:m] += factor * self.moments_y[k][j][:m]
        return a, b, d, self.errors(g, c, moved)

    def errors(self, g, c, moved):
        """Bounds on the errors of A, B and C."""
        square, square_y = self.moments[2][0].clamp_min(0), self.moments_y[2][0]
        reach = Reach(self.side, g, c, square, square_y)
        error_a, error_b, error_c = reach.errors(self.orders[:, None])
        grown = reach.h.exp()
        # Sums of float32: some units in their last place.
        rounding = 3e-7 * grown * reach.square.sqrt()
        error_a, error_b = error_a + rounding, error_b + 3e-7 * grown * reach.square_y.sqrt()
        error_c = error_c + rounding
        if moved:  # products with higher powers of q than there are
            g, c = g.abs(), c.abs()
            both, both_y = self.moments[2][2].clamp_min(0), self.moments_y[2][2]
            cubed = g * c.pow(3) / 6 * grown
            cross = cubed * (self.alone[4] * both).sqrt()
            cross_y = cubed * (self.steep * both).sqrt()
            both_y = without_sign(self.side.peak[:, 0], both, both_y)
            cross_y = cross_y + g.pow(3) * c.square() / 12 * grown * both_y
            error_a, error_b, error_c = error_a + cross, error_b + cross_y, error_c + 4 * cross
        return error_a, error_b, error_c


def term(x, k):
    """xᵏ/k!"""
    out = torch.ones_like(x)
    for i in range(1, k + 1):
        out = out * x / i
    return out


def add(sums, power, columns):
    """Add a slice's products of powers of û with columns (T, v) of p."""
    if columns:
        sums.addmm_(power, torch.cat(columns).T)
