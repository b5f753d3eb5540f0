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

HEAD = -12.7  # log probability above which a vocabulary entry belongs to a token's head
CUBIC = 0.5  # suspects a token, over both variants, for which a neuron's third order pays
BLOCK = 2048  # vocabulary entries at once, so that what is made of them stays in the cache


class Side:
    """The tokens' side of a block: log p, and moments under p that no neuron enters.

    Attributes
    ----------
    log_p : Tensor (T, V)
    entropy, peak : Tensor (T, 1)
        H, and the largest y.
    mean, reach : list of Tensor (T, 1)
        Mean under p of each variable q, and the largest |q| once centred.
    q_y, qq, qq_y : list of, and lists of lists of, Tensor (T,)
        E[y q_j], E[q_j q_k] and E[y q_j q_k].
    """

    def __init__(self, base):
        self.base = base
        self.log_p = torch.log_softmax(base.readout.finish(base.raw), -1)
        # Without an offset the logits' variable is y.
        self.same = not base.readout.shifted
        count = 1 if base.mu is None else 2
        blocks = [slice(v, v + BLOCK) for v in range(0, self.log_p.shape[1], BLOCK)]
        self.blocks = blocks
        self.entropy = -sum((x.exp() * x).sum(-1, True) for x in map(self.part, blocks))
        self.peak = self.log_p.amax(-1, True) + self.entropy
        self.mean = [torch.zeros_like(self.entropy)] * count
        mean, low, high = ([start] * count for start in (0.0, torch.inf, -torch.inf))
        for some in blocks:
            p = self.part(some).exp()
            for j, q in enumerate(self.variables(some)):
                mean[j] = mean[j] + (p * q).sum(-1, True)
                low[j] = q.amin(-1, True).clamp_max(low[j])
                high[j] = q.amax(-1, True).clamp_min(high[j])
        self.mean = mean  # from here on `variables` is centred
        self.reach = [torch.maximum(h - m, m - x) for x, h, m in zip(low, high, mean)]
        self.q_y = [0.0] * count
        self.qq = [[0.0] * count for _ in range(count)]
        self.qq_y = [[0.0] * count for _ in range(count)]
        for some in blocks:
            p, py, qs = self.weights(some)
            for j, one in enumerate(qs):
                self.q_y[j] = self.q_y[j] + (py * one).sum(-1)
                for k, other in enumerate(qs):
                    both = one * other
                    self.qq[j][k] = self.qq[j][k] + (p * both).sum(-1)
                    self.qq_y[j][k] = self.qq_y[j][k] + (py * both).sum(-1)

    def part(self, some):
        """log p for a slice of the vocabulary, (T, v)."""
        return self.log_p[:, some]

    def variables(self, some):
        """The centred variables q for a slice of the vocabulary, list of (T, v)."""
        scale, base = self.base.readout.scale, self.base
        if self.same:
            out = [self.log_p[:, some] - self.mean[0]]
        else:
            out = [scale * (base.raw[:, some] - base.readout.offset[some]) - self.mean[0]]
        if base.mu is not None:
            out.append(scale * base.mu[:, some] - self.mean[1])
        return out

    def weights(self, some):
        """p, p·y and the variables for a slice of the vocabulary."""
        log_p = self.log_p[:, some]
        p = log_p.exp()
        return p, p * (log_p + self.entropy), self.variables(some)

    def at(self, token, entries):
        """For one token and some entries: p, p·y and the variables, each (K,)."""
        log_p = self.log_p[token, entries]
        p = log_p.exp()
        scale, base = self.base.readout.scale, self.base
        if self.same:
            out = [log_p - self.mean[0][token]]
        else:
            clean = base.raw[token, entries] - base.readout.offset[entries]
            out = [scale * clean - self.mean[0][token]]
        if base.mu is not None:
            out.append(scale * base.mu[token, entries] - self.mean[1][token])
        return p, p * (log_p + self.entropy[token]), out

    def y_moment(self, power):
        """E_p[y^power], (T,)."""
        out = 0.0
        for some in self.blocks:
            _, py, _ = self.weights(some)
            y = self.log_p[:, some] + self.entropy
            out = out + (py * y.pow(power - 1)).sum(-1)
        return out


class Joint:
    """Joint moments under p of u, centred, with y and the variables: each (n, T).

    Attributes
    ----------
    mean : E[u]; y : E[y u]; square : E[u²]; square_y : E[y u²]
    q, q_y : lists of E[u q_j] and E[y u q_j]
    reach : largest |u|
    """

    def __init__(self, side, fan):
        u, tokens = fan.u, len(side.log_p)
        first = second = None
        for some in side.blocks:
            p, py, qs = side.weights(some)
            rows = [p, py]
            for j, q in enumerate(qs):
                # Where q is y, p·q is there already.
                rows += [py * q] if j == 0 and side.same else [p * q, py * q]
            rows = torch.cat(rows)
            part = u[:, some]
            if first is None:
                first = u.new_zeros(len(u), len(rows))
                second = u.new_zeros(len(u), 2 * tokens)
            first.addmm_(part, rows.T)
            second.addmm_(part.square(), rows[: 2 * tokens].T)
        self.mean, self.y, *rest = first.split(tokens, 1)
        square, square_y = second.split(tokens, 1)
        self.square = (square - self.mean.square()).clamp_min(0)
        self.square_y = square_y - 2 * self.mean * self.y
        self.reach = torch.maximum(fan.high[:, None] - self.mean, self.mean - fan.low[:, None])
        rest = [self.y, *rest] if side.same else rest
        self.q = rest[0::2]
        self.q_y = [x - self.mean * m for x, m in zip(rest[1::2], side.q_y)]


class Cubic:
    """Third-order moments for the neurons that most need them, where the only variable is y.

    Attributes
    ----------
    rows : Tensor (m,) int64
        The neurons.
    """

    def __init__(self, side, fan, joint, rows):
        u, tokens = fan.u.index_select(0, rows), len(side.log_p)
        cube = u.new_zeros(len(rows), 2 * tokens)
        square_yy, yyy = u.new_zeros(len(rows), tokens), u.new_zeros(len(rows), tokens)
        for some in side.blocks:
            p, py, (y,) = side.weights(some)
            part = u[:, some]
            square = part.square()
            pyy = py * y
            square_yy.addmm_(square, pyy.T)
            yyy.addmm_(part, (pyy * y).T)
            cube.addmm_(square.mul_(part), torch.cat((p, py)).T)
        self.rows = rows
        m, uy = joint.mean[rows], joint.y[rows]
        uu, uuy = joint.square[rows], joint.square_y[rows]  # centred
        uyy, yy = joint.q_y[0][rows], side.qq[0][0]
        y3, y4 = side.y_moment(3), side.y_moment(4)
        third, third_y = cube.split(tokens, 1)
        self.terms = (
            (third - 3 * m * uu - m.pow(3), 3 * uuy, 3 * uyy, y3),
            (
                third_y - 3 * m * uuy - 3 * m.square() * uy,
                3 * (square_yy - 2 * m * uyy - m.square() * yy),
                3 * (yyy - m * y3),
                y4,
            ),
        )

    def add(self, sums, gain, c):
        """Add the third order to stage 1's `Sums` (n, T)."""
        g, c = gain[self.rows], c[self.rows]
        powers = (g.pow(3), g.square() * c, g * c.square(), c.pow(3))
        f3, y3 = (sum(x * y for x, y in zip(powers, terms)) for terms in self.terms)
        sums.a[self.rows] += f3 / 6
        sums.b[self.rows] += y3 / 6
        sums.c[self.rows] += f3 / 2
        sums.cubic[self.rows] = 1.0


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
    cubic
        1.0 for neurons whose moments go to third order, else 0.0; (n,) before `at`.
    """

    def __init__(self, a, b, c, f2, y2, peak, reach, noise, cubic):
        self.a = a
        self.b = b
        self.c = c
        self.f2 = f2
        self.y2 = y2
        self.peak = peak
        self.reach = reach
        self.noise = noise
        self.cubic = cubic

    def at(self, rows, token):
        """The pairs of some neurons with one token."""
        values = (self.a, self.b, self.c, self.f2, self.y2, self.reach, self.noise)
        a, b, c, f2, y2, reach, noise = (value[rows, token] for value in values)
        return Sums(a, b, c, f2, y2, self.peak[token], reach, noise, self.cubic[rows])

    def only(self, rows):
        """Some of the pairs of one token."""
        values = (self.a, self.b, self.c, self.f2, self.y2, self.reach, self.noise)
        a, b, c, f2, y2, reach, noise = (value[rows] for value in values)
        return Sums(a, b, c, f2, y2, self.peak, reach, noise, self.cubic[rows])

    def loss(self, at_target):
        """Change of the loss; ``at_target`` is f there."""
        return self.a.log() - at_target

    def entropy(self):
        """Change of the entropy."""
        return self.a.log() - (self.b + self.c) / self.a

    def y_abs(self):
        """Bound on E_p[|y| f²] over the part that was not summed: |y| ≤ 2 max(peak, 0) − y."""
        return (2 * self.peak.clamp_min(0) * self.f2 - self.y2).clamp_min(0)

    def remainder(self):
        """|f|³ e^|f|, or where the third order is kept |f|⁴ e^|f| / 4, less E_p[f²]."""
        cube = self.reach * self.reach.clamp_max(30).exp()
        return torch.where(self.third(), cube * self.reach / 4, cube)

    def third(self):
        """Where the third order is kept, to go with ``f2``."""
        return (self.cubic > 0)[:, None] if self.f2.dim() == 2 else self.cubic > 0

    def loss_bound(self):
        """Bound on the loss's error: |e^f − 1 − f − f²/2| ≤ |f|³ e^|f| / 6, and A ≥ 1.

        The third absolute moment is at most reach · E[f²].
        """
        return self.remainder() * self.f2 / 6 + self.noise

    def entropy_bound(self):
        """Bound on the entropy's error, whose leading term is E_p[f³ (y + 2 − D)] / 6, D = B + C.

        What follows it is at most E_p[f⁴ e^|f| ((1 + |D| + |y|)/24 + 1/6)]. Where the third order
        is kept they are E_p[f⁴ (y + 3 − D)] / 24 and E_p[|f|⁵ e^|f| ((1 + |D| + |y|)/120 + 1/24)].
        """
        third = self.third()
        y, d = self.y_abs(), (self.b + self.c).abs()
        shift = 2.0 + third.float()
        # |y + 2| is |y| − 2 where all y are below −2, as in most tails.
        leading = y + torch.where(self.peak < -shift, -shift, shift) * self.f2 + d * self.f2
        rest = (y + (1 + d) * self.f2) / (24 + 6 * third.float()) + self.f2 / 6
        bound = self.remainder() * (leading.clamp_min(0) / 6 + self.reach * rest)
        return bound + (2 + d) * self.noise


def transfer_bounds(one, other, apart):
    """Bounds on how much two `Sums` differ in the errors of their loss and entropy.

    By the mean value theorem, ``apart`` being the largest |f − f'|: the derivatives of the
    remainders in A and in C are at most f² e^|f| / 2 and 3 f² e^|f| / 2, and with the third order
    |f|³ e^|f| / 6 and 2 |f|³ e^|f| / 3.
    """
    reach = torch.maximum(one.reach, other.reach)
    factor = apart * reach.clamp_max(30).exp()
    factor = torch.where(one.third(), factor * reach / 2, factor)
    f2, y2 = one.f2 + other.f2, one.y_abs() + other.y_abs()
    loss = factor * f2 / 2 + one.noise + other.noise
    d = torch.maximum((one.b + one.c).abs(), (other.b + other.c).abs())
    return loss, loss * (2 + d) + factor * (y2 / 2 + 1.5 * f2)


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
    cubic = torch.zeros_like(f2[:, 0])
    a, b, c = 1 + f2 / 2, y1 + y2 / 2, f2.clone()
    return Sums(a, b, c, f2, y2, side.peak[:, 0], reach, noise, cubic)


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
        out = Guide(one, token, rows, (first, sums), (before, values))
        out.bound = torch.where(left, 0.0, bound)
        one.left[rows[left], token] = True
        return out

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

    def __init__(self, one, token, rows, sums, values):
        self.one = one
        self.token = token
        self.sums = sums
        self.values = values
        self.rows = rows
        self.place = torch.full((len(one.gain),), -1, dtype=torch.int64, device=rows.device)
        self.place[rows] = torch.arange(len(rows), device=rows.device)
        self.bound = None

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
    suspects = sum(one.suspects.sum(-1) for one in variants)
    rows = (suspects > CUBIC * len(side.log_p)).nonzero()[:, 0]
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
