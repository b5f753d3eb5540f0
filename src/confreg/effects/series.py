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

import math

import torch

from .exact import LOG2E, exact_token, others
from .measures import split, variants_of

HEAD = 3e-6  # probability above which a vocabulary entry belongs to a token's head
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


class Joint:
    """Joint moments under p of u, centred, with y and the variables: each (n, T).

    Attributes
    ----------
    mean : E[u]; y : E[y u]; square : E[u²]; square_y : E[y u²]
    q, q_y : lists of E[u q_j] and E[y u q_j]
    """

    def __init__(self, side, u):
        tokens = len(side.log_p)
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
        rest = [self.y, *rest] if side.same else rest
        self.q = rest[0::2]
        self.q_y = [x - self.mean * m for x, m in zip(rest[1::2], side.q_y)]


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
        names = ("a", "b", "c", "f2", "y2", "reach", "noise")
        values = {name: getattr(self, name)[rows, token] for name in names}
        return Sums(peak=self.peak[token], **values)

    def loss(self, at_target):
        """Change of the loss; ``at_target`` is f there."""
        return self.a.log() - at_target

    def entropy(self):
        """Change of the entropy."""
        return self.a.log() - (self.b + self.c) / self.a

    def loss_bound(self):
        """Bound on the loss's error: |e^f − 1 − f − f²/2| ≤ |f|³ e^|f| / 6, and A ≥ 1.

        The third absolute moment is at most reach · E[f²].
        """
        return self.reach * self.reach.clamp_max(30).exp() * self.f2 / 6 + self.noise

    def entropy_bound(self):
        """Bound on the entropy's error: as above, and |f (e^f − 1 − f)| ≤ |f|³ e^|f| / 2.

        |y| ≤ 2 max(peak, 0) − y bounds the moment with y.
        """
        cube = self.reach * self.reach.clamp_max(30).exp()
        y2 = (2 * self.peak.clamp_min(0) * self.f2 - self.y2).clamp_min(0)
        loss = self.loss_bound()
        return loss * (1 + (self.b + self.c).abs()) + cube * (y2 / 6 + self.f2 / 2) + self.noise


def second_order(side, fan, joint, gain, coefficients):
    """Stage 1: `Sums` (n, T) from moments up to second order."""
    f2 = gain.square() * joint.square
    y1 = gain * joint.y
    y2 = gain.square() * joint.square_y
    reach = torch.maximum(fan.high[:, None] - joint.mean, joint.mean - fan.low[:, None])
    reach = gain.abs() * reach
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
    noise = 3e-7 * (gain * joint.mean).square()
    return Sums(1 + f2 / 2, y1 + y2 / 2, f2, f2, y2, side.peak[:, 0], reach, noise)


class Head:
    """One token's head: the vocabulary entries that stage 2 sums exactly."""

    def __init__(self, side, by_entry, token):
        level = math.log(HEAD)
        entries = (side.log_p[token] > level).nonzero()[:, 0]
        self.p, self.py, self.variables = side.at(token, entries)
        self.u = by_entry.index_select(0, entries)
        self.peak = side.entropy[token, 0] + level

    def refine(self, sums, gain, coefficients, mean, rows):
        """Stage 2: `Sums` (m,) of the neurons ``rows``, given theirs of stage 1."""
        f = self.u.index_select(1, rows).sub_(mean).mul_(gain)
        for c, q in zip(coefficients, self.variables):
            if c.any():
                f.addcmul_(q[:, None], c)
        square = f.square()
        f2, y2 = self.sums(square)
        beyond = (f * LOG2E).exp2_().sub_(1).sub_(f).sub_(square, alpha=0.5)
        a, b = self.sums(beyond)
        # C beyond second order is the sum of f (e^f − 1 − f).
        c = beyond.add_(square, alpha=0.5).mul_(f).T @ self.p
        left = torch.maximum(sums.f2 - f2, 1e-6 * sums.f2)
        return Sums(
            sums.a + a, sums.b + b, sums.c + c,
            left, sums.y2 - y2, self.peak, sums.reach, sums.noise,
        )  # fmt: skip

    def sums(self, values):
        """Sums over the head of p·values and p·y·values: (K, m) -> two (m,)."""
        return values.T @ self.p, values.T @ self.py


class Variant:
    """One variant's ablations of a block, through the stages."""

    def __init__(self, side, fan, by_entry, joint, coefficients, columns):
        scale = side.base.readout.scale
        self.columns = columns  # of the effects, by measure
        self.coefficients = coefficients
        self.gain = coefficients.gain * scale
        self.others = others(coefficients)
        self.mean = joint.mean
        self.sums = second_order(side, fan, joint, self.gain, self.others)
        self.at_target = torch.full_like(self.mean, torch.nan)
        for token, target in enumerate(side.base.targets.tolist()):
            if target >= 0:
                at = slice(target, target + 1)
                f = self.gain[:, token] * (by_entry[target] - self.mean[:, token])
                for c, q in zip(self.others, side.at(token, at)[2]):
                    f = f + c[:, token] * q
                self.at_target[:, token] = f

    def write(self, out, sums, at_target):
        """Put the effects of some pairs into their columns of ``out`` (..., E)."""
        if "loss" in self.columns:
            out[..., self.columns["loss"]] = sums.loss(at_target)
        if "entropy" in self.columns:
            out[..., self.columns["entropy"]] = sums.entropy()
        return out

    def doubtful(self, sums, tolerance):
        """Whether each pair's bound exceeds the tolerance (or is no number)."""
        bound = sums.entropy_bound() if "entropy" in self.columns else sums.loss_bound()
        return ~(bound <= tolerance)

    def refine(self, out, token, rows, head, tolerance):
        """Stage 2 for some neurons; returns those of them whose bound is still too large."""
        coefficients = [c[rows, token] for c in self.others]
        gain, mean = self.gain[rows, token], self.mean[rows, token]
        sums = head.refine(self.sums.at(rows, token), gain, coefficients, mean, rows)
        out[rows, token] = self.write(out[rows, token], sums, self.at_target[rows, token])
        return rows[self.doubtful(sums, tolerance)]

    def replace(self, out, base, fan, token, rows, effects):
        """Stage 3 for some neurons."""
        names = tuple(effects[column] for column in self.columns.values())
        pairs = {split(names[0])[1]: self.coefficients.at(rows, token)}
        found = exact_token(base, fan, token, pairs, names, rows)
        for column, values in zip(self.columns.values(), found.T):
            out[rows, token, column] = values


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
        Pairs that were left to `exact`.
    """
    side = Side(base)
    joint = Joint(side, fan.u)
    out = fan.u.new_empty(*joint.mean.shape, len(effects))
    left = torch.zeros(joint.mean.shape, dtype=torch.bool, device=out.device)
    stages = []
    for name in variants_of(effects):
        columns = {m: i for i, (m, v) in enumerate(map(split, effects)) if v == name}
        one = Variant(side, fan, by_entry, joint, coefficients[name], columns)
        one.write(out, one.sums, one.at_target)
        stages.append((one, one.doubtful(one.sums, tolerance)))
    for token in range(len(side.log_p)):
        chosen = [(one, doubtful[:, token].nonzero()[:, 0]) for one, doubtful in stages]
        if not any(len(rows) for _, rows in chosen):
            continue
        head = Head(side, by_entry, token)
        for one, rows in chosen:
            rows = one.refine(out, token, rows, head, tolerance)
            if len(rows):
                left[rows, token] = True
                one.replace(out, base, fan, token, rows, effects)
    return out, int(left.sum())
