"""Which edits are taken beyond the second order, and how far; and what an order leaves out."""

import math

import torch

from .expectations import tail, without_sign
from .tuning import BANDED, EXACT, FEWER, LIKELY, OFTEN, ORDERS


def powers(k):
    """How many powers of q go with ûᵏ in A; in B one less."""
    return min(count for first, count in FEWER if first <= k)


def even(order):
    """The highest even power of û that an order knows the moment of."""
    return order // 2 * 2


class VariableMoments:
    """The tokens' moments of powers of the variable q, which û does not enter.

    Attributes
    ----------
    q, y : lists of Tensor (T,)
        E[qˡ] and E[y qˡ], to the powers that the highest of `ORDERS` takes.
    steep : dict of int to Tensor (T,)
        E[y² qˡ].
    mean_p : Tensor (V,)
        Mean of p over the tokens.
    """

    def __init__(self, own):
        zero, count = torch.zeros_like(own.log_p[:, 0]), ORDERS[-1] + 4
        self.q, self.y = [zero] * count, [zero] * (count - 1)
        self.steep = {2 * count - 4: zero for _, count in FEWER}
        mean_p = []
        for some in own.blocks:
            p, py, variables = own.weights(some)
            q = variables["logits"]
            mean_p.append(p.mean(0))
            self.q = [x + column.sum(-1) for x, column in zip(self.q, timesing(p, q, count))]
            if not own.same:
                y = own.log_p[:, some] + own.entropy
                for i, column in enumerate(timesing(py, q, count - 1)):
                    self.y[i] = self.y[i] + column.sum(-1)
                    if i in self.steep:
                        self.steep[i] = self.steep[i] + (column * y).sum(-1)
        if own.same:  # q is y
            self.y, self.steep = self.q[1:], {k: self.q[k + 2] for k in self.steep}
        self.mean_p = torch.cat(mean_p)

    def even(self, own, power):
        """E[qⁿ] and a bound on E[|y| qⁿ] of an even power."""
        return self.q[power], without_sign(own.peak[:, 0], self.q[power], self.y[power])


def timesing(p, q, count):
    """p, p·q, p·q² ... one at a time."""
    for _ in range(count):
        yield p
        p = p * q


class Remainder:
    """What an order leaves out, by h = |ĝ û| + |c q|, which no |f| exceeds: of some pairs.

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


def combined(a, d, errors, entropic):
    """Bound on the effects' error from those of A, B and C.

    ``d`` is (B + C)/A; ``entropic`` says whether any effect reads it (`Measure.tilted`) or all
    read log A only.
    """
    error_a, error_b, error_c = errors
    least = a - error_a
    least = torch.where(least > 0, least, torch.nan)
    if not entropic:
        return error_a / least
    return ((1 + d.abs()) * error_a + error_b + error_c) / least


def choose(own, joint, directions, pathways, suspects, tolerance, variable):
    """The edits for which higher orders pay, and the orders: (m,) int64 each, highest first."""
    rows = (suspects.float().mean(-1) > OFTEN).nonzero()[:, 0]
    size = largest(directions)[rows, None]
    square, square_y = (x[rows] / size.square() for x in joint.uncentred_squares())
    square_y = without_sign(own.peak[:, 0], square, square_y)
    typical = typical_powers(directions, rows, size, variable.mean_p)
    pushes = [
        (
            one.gain[rows] * size,
            one.coefficients["logits"][rows],
            one.sums.excess()[rows],
            one.entropic,
        )
        for one in pathways
    ]
    costs = [BANDED * suspects[rows].float().mean(-1)]
    for order in ORDERS:
        left = torch.zeros_like(suspects[rows])
        n = even(order)
        u = [x * typical[n] for x in (square, square_y)]
        q = variable.even(own, n)
        for g, c, d, entropic in pushes:
            rest = Remainder(g, c, own.reach["logits"][:, 0], n, u, q)
            left |= ~(combined(1, d, rest.errors(order), entropic) <= tolerance)
        columns = sum(2 * powers(k) - 1 if not own.same else powers(k) for k in range(1, order + 1))
        costs.append(columns + EXACT * left.float().mean(-1))
    best = torch.stack(costs).argmin(0)
    orders = torch.tensor((2, *ORDERS), device=rows.device)[best]
    orders, place = orders.sort(descending=True)
    count = int((orders > 2).sum())
    return rows[place[:count]], orders[:count]


def typical_powers(directions, rows, size, mean_p):
    """E[ûⁿ]/E[û²] under the tokens' mean distribution, about: dict of the even n to (m, 1)."""
    p, entries = mean_p.topk(min(LIKELY, len(mean_p)))
    wanted, parts = range(2, ORDERS[-1] + 1, 2), []
    for some, most in zip(rows.split(256), size.split(256)):
        square = directions.at(some, entries).div_(most).square_()
        parts.append(torch.stack([x @ p for x in timesing(square, square, len(wanted))]))
    found = torch.cat(parts, 1)
    found = found / found[0].clamp_min(1e-30)
    return dict(zip(wanted, found[..., None]))


def largest(directions):
    """Largest |u| of each edit, (n,)."""
    return torch.maximum(directions.high.abs(), directions.low.abs()).clamp_min(1e-30)
