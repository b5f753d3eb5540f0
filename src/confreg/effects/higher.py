"""Moments of higher orders, for the neurons that push too hard for the second.

With û = u / max|u|, ĝ = gain·max|u| and one variable q (the logits, for the temperature), an
ablation adds f = ĝ û + c q to the logits, up to what it adds to all of them, and

    A − 1 = Σ ĝᵏ cˡ / (k! l!) E[ûᵏ qˡ],   B = Σ ĝᵏ cˡ / (k! l!) E[y ûᵏ qˡ],
    C = Σ (k + l) ĝᵏ cˡ / (k! l!) E[ûᵏ qˡ]

over k + l up to a neuron's order. û is not centred token by token: nothing cancels, and |û| ≤ 1.
Temperatures change little, so that few powers of q go with powers of û (`powers`). `Higher.errors`
bounds all that is left out; the derivation is in docs/effects.md.
"""

import math

import torch

from .sums import tail, without_sign

ORDERS = (3, 4, 5, 6, 8, 10)
EXACT, BANDED = 100.0, 50.0
"""Costs of a pair's exact sums and of its bands, in products of u with a column of p."""

LIKELY = 1024
"""Vocabulary entries that are looked at to choose an order."""


FEWER = ((1, 5), (3, 4), (5, 3))
"""From which power of û on how many powers of q go with it."""


def powers(k):
    """How many powers of q go with ûᵏ in A; in B one less."""
    return min(count for first, count in FEWER if first <= k)


def even(order):
    """The highest even power of û that an order knows the moment of."""
    return order // 2 * 2


class Alone:
    """The tokens' moments that û does not enter.

    Attributes
    ----------
    q, y : lists of Tensor (T,)
        E[qˡ] and E[y qˡ], to the powers that the highest of `ORDERS` takes.
    steep : dict of int to Tensor (T,)
        E[y² qˡ].
    mean_p : Tensor (V,)
        Mean of p over the tokens.
    """

    def __init__(self, side):
        zero, count = torch.zeros_like(side.log_p[:, 0]), ORDERS[-1] + 4
        self.q, self.y = [zero] * count, [zero] * (count - 1)
        self.steep = {2 * count - 4: zero for _, count in FEWER}
        mean_p = []
        for some in side.blocks:
            p, py, (q, *_) = side.weights(some)
            mean_p.append(p.mean(0))
            self.q = [x + column.sum(-1) for x, column in zip(self.q, timesing(p, q, count))]
            if not side.same:
                y = side.log_p[:, some] + side.entropy
                for i, column in enumerate(timesing(py, q, count - 1)):
                    self.y[i] = self.y[i] + column.sum(-1)
                    if i in self.steep:
                        self.steep[i] = self.steep[i] + (column * y).sum(-1)
        if side.same:  # q is y
            self.y, self.steep = self.q[1:], {k: self.q[k + 2] for k in self.steep}
        self.mean_p = torch.cat(mean_p)

    def even(self, side, power):
        """E[qⁿ] and a bound on E[|y| qⁿ] of an even power."""
        return self.q[power], without_sign(side.peak[:, 0], self.q[power], self.y[power])


def timesing(p, q, count):
    """p, p·q, p·q² ... one at a time."""
    for _ in range(count):
        yield p
        p = p * q


class Reach:
    """h = |ĝ û| + |c q|, which no |f| exceeds, of some pairs: tensors of one shape.

    Parameters
    ----------
    g, c : Tensor
    most_q : Tensor
        Largest |q|.
    power : int
        An even n.
    u, q : pairs of Tensor
        E[ûⁿ] and a bound on E[|y| ûⁿ]; E[qⁿ] and a bound on E[|y| qⁿ].

    Attributes
    ----------
    most : the largest h
    moment, moment_y : bounds on E[hⁿ] and E[|y| hⁿ]
    """

    def __init__(self, g, c, most_q, power, u, q):
        g, c = g.abs(), c.abs()
        self.most = g + c * most_q
        self.power = power
        # Minkowski's inequality.
        self.moment, self.moment_y = (
            (g * x.pow(1 / power) + c * z.pow(1 / power)).pow(power) for x, z in zip(u, q)
        )

    def errors(self, order):
        """Bounds on what the orders beyond ``order`` add to A, B and C."""
        n = order + 1
        left = self.most.pow(n - self.power) / math.factorial(n)
        rest = left * tail(self.most, n)
        # In C a term counts its order times: h Σ hᵏ/k! from ``order`` on.
        return (
            rest * self.moment,
            rest * self.moment_y,
            n * left * tail(self.most, order) * self.moment,
        )


def combined(a, d, errors, measured):
    """Bound on the effects' error from those of A, B and C; ``d`` is (B + C)/A."""
    error_a, error_b, error_c = errors
    least = a - error_a
    least = torch.where(least > 0, least, torch.nan)
    if "entropy" not in measured:
        return error_a / least
    return ((1 + d.abs()) * error_a + error_b + error_c) / least


def choose(side, joint, fan, variants, suspects, tolerance, alone):
    """The neurons for which higher orders pay, and the orders: (m,) int64 each, highest first."""
    rows = (suspects.float().mean(-1) > 0.05).nonzero()[:, 0]
    size = largest(fan)[rows, None]
    square, square_y = (x[rows] / size.square() for x in joint.uncentred_squares())
    square_y = without_sign(side.peak[:, 0], square, square_y)
    typical = typical_powers(fan, rows, size, alone.mean_p)
    pushes = [
        (v.gain[rows] * size, v.others[0][rows], v.sums.excess()[rows], v.columns) for v in variants
    ]
    costs = [BANDED * suspects[rows].float().mean(-1)]
    for order in ORDERS:
        left = torch.zeros_like(suspects[rows])
        n = even(order)
        u = [x * typical[n] for x in (square, square_y)]
        q = alone.even(side, n)
        for g, c, d, measured in pushes:
            reach = Reach(g, c, side.reach[0][:, 0], n, u, q)
            left |= ~(combined(1, d, reach.errors(order), measured) <= tolerance)
        columns = sum(
            2 * powers(k) - 1 if not side.same else powers(k) for k in range(1, order + 1)
        )
        costs.append(columns + EXACT * left.float().mean(-1))
    best = torch.stack(costs).argmin(0)
    orders = torch.tensor((2, *ORDERS), device=rows.device)[best]
    orders, place = orders.sort(descending=True)
    count = int((orders > 2).sum())
    return rows[place[:count]], orders[:count]


def typical_powers(fan, rows, size, mean_p):
    """E[ûⁿ]/E[û²] under the tokens' mean distribution, about: dict of the even n to (m, 1)."""
    p, entries = mean_p.topk(min(LIKELY, len(mean_p)))
    wanted, parts = range(2, ORDERS[-1] + 1, 2), []
    for some, most in zip(rows.split(256), size.split(256)):
        square = fan.at(some, entries).div_(most).square_()
        parts.append(torch.stack([x @ p for x in timesing(square, square, len(wanted))]))
    found = torch.cat(parts, 1)
    found = found / found[0].clamp_min(1e-30)
    return dict(zip(wanted, found[..., None]))


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
    alone : Alone
    """

    def __init__(self, side, joint, fan, rows, orders, alone):
        self.side = side
        self.alone = alone
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
        every = range(1, self.top + 1)
        missing = {k: powers(k) - len(self.moments.get(k, [])) for k in every}
        missing_y = {k: powers(k) - 1 - len(self.moments_y.get(k, [])) for k in every}
        found = {k: u.new_zeros(self.counts[k], missing[k] * tokens) for k in every}
        found_y = {k: u.new_zeros(self.counts[k], missing_y[k] * tokens) for k in every if not same}
        for some in side.blocks:
            p, py, (q, *_) = side.weights(some)
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
                x = factor * (self.alone.q[j] if alone else self.moments[k][j][:m])
                a[:m] += x
                d[:m] += order * x
                if alone:
                    b[:m] += factor * self.alone.y[j]
                elif j < powers(k) - 1:
                    b[:m] += factor * self.moments_y[k][j][:m]
        return a, b, d, self.errors(g, c, moved)

    def errors(self, g, c, moved):
        """Bounds on the errors of A, B and C."""
        parts = []
        orders, counts = self.orders.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        for order, count, end in zip(orders.tolist(), counts.tolist(), ends):
            reach = self.reach(g, c, slice(end - count, end), even(order))
            parts.append(reach.errors(order))
        error_a, error_b, error_c = (torch.cat(same) for same in zip(*parts))
        reach = self.reach(g, c, slice(None), 2)
        grown = reach.most.exp()
        # Sums of float32: some units in their last place.
        rounding = 3e-7 * grown * reach.moment.sqrt()
        error_a, error_b = error_a + rounding, error_b + 3e-7 * grown * reach.moment_y.sqrt()
        error_c = error_c + rounding
        if moved:
            crossed = self.crossed(g.abs(), c.abs())
            error_a, error_b, error_c = (
                x + y for x, y in zip((error_a, error_b, error_c), crossed)
            )
        return error_a, error_b, error_c

    def crossed(self, g, c):
        """Bounds on what products with more powers of q than there are add to A, B and C."""
        most = c * self.side.reach[0][:, 0]
        a = b = d = torch.zeros_like(g)
        for k, j in FEWER:
            square = self.squares(k)
            x, x_early = (from_on(g, k, g, n) for n in (k, k - 1))
            # E[|û|ᵏ qʲ] by the inequality of Cauchy and Schwarz.
            moment = (square * self.alone.q[2 * j - 2]).sqrt()
            moment_y = (square * self.alone.steep[2 * j - 4]).sqrt()
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

    def reach(self, g, c, some, power):
        """`Reach` of some of the neurons, from one of the moments."""
        u, u_y = (kind[power][0][some] for kind in (self.moments, self.moments_y))
        u = u.clamp_min(0)
        u = u, without_sign(self.side.peak[:, 0], u, u_y)
        most_q, q = self.side.reach[0][:, 0], self.alone.even(self.side, power)
        return Reach(g[some], c[some], most_q, power, u, q)


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
