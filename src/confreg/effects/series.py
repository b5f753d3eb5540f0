"""The closed form over all neurons and tokens at once: moments, a head summed exactly, a bound.

For one token let p be the model's distribution, y = log p + H its centred log-probability and
f = gain·u + Σ_j c_j q_j, less its mean under p, what an ablation adds to the logits (q: the logits
themselves, for the temperature, and a post-norm's μ). With

    A = E_p[e^f],   B = E_p[y e^f],   C = E_p[f e^f]

the loss changes by log A − f(target) and the entropy by log A − (B + C)/A. Three stages give them:

1. Up to second order in f, from joint moments of p with u and u²: a few matrix products for all
   neurons and tokens. Taylor's remainder bounds the error of every pair.
2. Where that bound exceeds the tolerance: the terms beyond second order summed exactly over the
   token's *head*, the vocabulary entries likelier than `HEAD`; the bound now counts the tail only.
3. Where it still exceeds the tolerance: `exact`.

The derivation is in docs/effects.md.
"""

import torch

from .exact import LOG2E, exact_token, others
from .measures import split, variants_of
from .moments import Cubic, Joint, Side
from .sums import Sums, second_order, transfer_bounds

HEAD = -12.7  # log probability above which a vocabulary entry belongs to a token's head
CUBIC = 0.5  # suspects a token, over both variants, for which a neuron's third order pays


class Head:
    """One token's head: the vocabulary entries that stage 2 sums exactly."""

    def __init__(self, side, by_entry, token):
        entries = (side.log_p[token] > HEAD).nonzero()[:, 0]
        self.p, self.py, self.variables = side.at(token, entries)
        self.u = by_entry.index_select(0, entries)
        self.peak = side.entropy[token, 0] + HEAD

    def refine(self, sums, gain, coefficients, mean, rows):
        """Stage 2: `Sums` (m,) of the neurons ``rows``, given theirs of stage 1."""
        f = self.u.index_select(1, rows).sub_(mean).mul_(gain)
        for c, q in zip(coefficients, self.variables):
            if c.any():
                f.addcmul_(q[:, None], c)
        square = f.square()
        f2, y2 = self.sums(square)
        beyond = (f * LOG2E).exp2_().sub_(1).sub_(f).sub_(square, alpha=0.5)
        if sums.cubic.any():
            third = (square * f).mul_(sums.cubic / 6)
            a, b = self.sums(beyond.sub_(third))
            last = beyond.add_(third).addcmul_(square, (1 - sums.cubic) / 2)
        else:
            a, b = self.sums(beyond)
            last = beyond.add_(square, alpha=0.5)
        # C beyond second order is the sum of f (e^f − 1 − f), beyond third that less f³/2.
        c = last.mul_(f).T @ self.p
        left = torch.maximum(sums.f2 - f2, 1e-6 * sums.f2)
        return Sums(
            sums.a + a, sums.b + b, sums.c + c,
            left, sums.y2 - y2, self.peak, sums.reach, sums.noise, sums.cubic,
        )  # fmt: skip

    def sums(self, values):
        """Sums over the head of p·values and p·y·values: (K, m) -> two (m,)."""
        return values.T @ self.p, values.T @ self.py


class Variant:
    """One variant's ablations of a block, through the stages."""

    def __init__(self, side, joint, by_entry, coefficients, columns, tolerance):
        scale = side.base.readout.scale
        self.side = side
        self.joint = joint
        self.columns = columns  # of the effects, by measure
        self.coefficients = coefficients
        self.gain = coefficients.gain * scale
        self.others = others(coefficients)
        self.mean = joint.mean
        self.sums = second_order(side, joint, self.gain, self.others)
        self.at_target = torch.full_like(self.mean, torch.nan)
        for token, target in enumerate(side.base.targets.tolist()):
            if target >= 0:
                at = slice(target, target + 1)
                f = self.gain[:, token] * (by_entry[target] - self.mean[:, token])
                for c, q in zip(self.others, side.at(token, at)[2]):
                    f = f + c[:, token] * q
                self.at_target[:, token] = f

        self.tolerance = tolerance
        self.judge()
        self.left = torch.zeros_like(self.suspects)  # to exact

    def judge(self):
        """Stage 1's effects, and the pairs whose bound exceeds the tolerance."""
        self.values = self.read(self.sums, self.at_target)
        self.suspects = ~(self.bound(self.sums) <= self.tolerance)

    def read(self, sums, at_target):
        """The effects (..., columns) of some pairs."""
        found = {"loss": sums.loss(at_target), "entropy": sums.entropy()}
        return torch.stack([found[name] for name in self.columns], -1)

    def bound(self, sums):
        """Bound on the error of some pairs, the largest of their effects."""
        return sums.entropy_bound() if "entropy" in self.columns else sums.loss_bound()

    def apart(self, other, rows, token):
        """The largest |f − f'| of two variants for some neurons with one token."""
        out = (self.gain - other.gain)[rows, token].abs() * self.joint.reach[rows, token]
        for mine, theirs, q in zip(self.others, other.others, self.side.reach):
            out = out + (mine - theirs)[rows, token].abs() * q[token]
        return out


class Token:
    """Stages 2 and 3 for one token and all variants, each variant once."""

    def __init__(self, side, base, fan, by_entry, token, tolerance):
        self.side = side
        self.base = base
        self.fan = fan
        self.by_entry = by_entry
        self.token = token
        self.tolerance = tolerance
        self.head = None

    def improve(self, one, effects, guide=None):
        """Recompute the suspects of a variant; a `Guide` for others, or None without suspects."""
        token = self.token
        rows = one.suspects[:, token].nonzero()[:, 0]
        if guide is not None and len(rows):
            rows = rows[~guide.lend(one, rows, one.sums.at(rows, token), 0, self.tolerance)]
        if len(rows) == 0:
            return None
        if self.head is None:
            self.head = Head(self.side, self.by_entry, token)
        first, before = one.sums.at(rows, token), one.values[rows, token]
        coefficients = [c[rows, token] for c in one.others]
        gain, mean = one.gain[rows, token], one.mean[rows, token]
        sums = self.head.refine(first, gain, coefficients, mean, rows)
        values = one.read(sums, one.at_target[rows, token])
        one.values[rows, token] = values
        bound = one.bound(sums)
        left = ~(bound <= self.tolerance)
        if guide is not None and left.any():
            some = left.nonzero()[:, 0]
            left[some] = ~guide.lend(one, rows[some], sums.only(some), 1, self.tolerance)
        if left.any():
            one.values[rows[left], token] = self.exactly(one, rows[left], effects)
        one.left[rows[left], token] = True
        bound = torch.where(left, 0.0, bound)
        return Guide(one, token, rows, (first, sums), (before, values), bound)

    def exactly(self, one, rows, effects):
        """Stage 3: the effects (m, columns) of one variant."""
        names = tuple(effects[column] for column in one.columns.values())
        pairs = {split(names[0])[1]: one.coefficients.at(rows, self.token)}
        return exact_token(self.base, self.fan, self.token, pairs, names, rows)


class Guide:
    """What stages 2 and 3 changed in one variant, which another one may change alike.

    The total effect's f is the direct effect's but for the temperature's little: what the first
    stage left out of the one is nearly what it left out of the other, and `transfer_bounds` says
    how nearly.
    """

    def __init__(self, one, token, rows, sums, values, bound):
        self.one = one
        self.token = token
        self.sums = sums
        self.values = values
        self.rows = rows
        self.place = torch.full((len(one.gain),), -1, dtype=torch.int64, device=rows.device)
        self.place[rows] = torch.arange(len(rows), device=rows.device)
        self.bound = bound

    def lend(self, other, rows, sums, stage, tolerance):
        """Change the suspects ``rows`` of another variant alike where that is good enough.

        ``sums`` are theirs after ``stage`` (0 or 1). Returns which were changed, (m,) bool.
        """
        done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        if list(self.one.columns) != ["loss", "entropy"] or list(other.columns) != [
            "loss",
            "entropy",
        ]:
            return done
        place = self.place[rows]
        known = (place >= 0).nonzero()[:, 0]
        if len(known) == 0:
            return done
        rows, place, mine = rows[known], place[known], sums.only(known)
        theirs = self.sums[stage].only(place)
        change = self.one.values[rows, self.token] - self.values[stage][place]
        bound = transfer_bounds(mine, theirs, other.apart(self.one, rows, self.token))[1]
        # Where A and D = B + C differ, so does what the same change of them does.
        differ = 2 * (mine.a - theirs.a).abs() + (mine.b + mine.c - theirs.b - theirs.c).abs()
        bound = bound + self.bound[place] + change.nan_to_num().abs().sum(-1) * differ
        good = bound <= tolerance
        rows, change = rows[good], change[good]
        now = other.read(mine.only(good), other.at_target[rows, self.token])
        other.values[rows, self.token] = now + change
        done[known[good]] = True
        return done


def series(base, fan, by_entry, coefficients, effects, tolerance):
    """Effects of every neuron on every token of a block.

    Parameters
    ----------
    base : Base
    fan : Fan
    by_entry : Tensor (V, n)
        The fan's u, transposed.
    coefficients : dict of str to Coefficients, each (n, T)
    effects : tuple of str
        Which `exact.tilts` admits.
    tolerance : float
        Nats.

    Returns
    -------
    effects : Tensor (n, T, E) float32
    recomputed : int
        Pairs of which some effect was left to `exact`.
    """
    side = Side(base)
    joint = Joint(side, fan)
    variants = []
    for name in sorted(variants_of(effects)):  # the direct effect first: it is the guide
        columns = {m: i for i, (m, v) in enumerate(map(split, effects)) if v == name}
        columns = {m: columns[m] for m in ("loss", "entropy") if m in columns}
        variants.append(Variant(side, joint, by_entry, coefficients[name], columns, tolerance))
    suspects = torch.stack([one.suspects.sum(-1) for one in variants])
    rows = (suspects.sum(0) > CUBIC * len(side.log_p)).nonzero()[:, 0]
    if len(rows) and side.same and base.mu is None:
        cubic = Cubic(side, fan, joint, rows)
        for one in variants:
            cubic.add(one.sums, one.gain, one.others[0])
            one.judge()
    for token in range(len(side.log_p)):
        state = Token(side, base, fan, by_entry, token, tolerance)
        guide = None
        for one in variants:
            guide = state.improve(one, effects, guide)
    out = fan.u.new_empty(*joint.mean.shape, len(effects))
    left = torch.zeros_like(variants[0].left)
    for one in variants:
        for values, column in zip(one.values.unbind(-1), one.columns.values()):
            out[..., column] = values
        left |= one.left
    return out, int(left.sum())
