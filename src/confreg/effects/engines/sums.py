"""The exact sums: E_p[e^f], E_p[y e^f] and E_p[f e^f] over the whole vocabulary, pair by pair.

With p the model's distribution, H its entropy, y = log p + H and f what the edit adds to the
logits: A = E_p[e^f], B = E_p[y e^f], C = E_p[f e^f]; the loss changes by log A − f(target), the
entropy by log A − (B + C)/A, D(p_freq ‖ p) by log A − E_freq[f].
"""

import torch

from .tuning import CACHED, LOG2E, MANY, PIECE


class ExactSums:
    """One token's side of the exact sums."""

    def __init__(self, unablated, token, dtype):
        # In float64: p's own rounding is common to all of its sums.
        log_p = torch.log_softmax(unablated.readout.finish(unablated.raw[token].double()), -1)
        p = log_p.exp()
        self.p, self.py = p.to(dtype), (p * (log_p - p @ log_p)).to(dtype)
        variables = unablated.variables(token, torch.float64)
        self.variables = {name: (q - p @ q).to(dtype) for name, q in variables.items()}
        self.most = {name: q.abs().amax() for name, q in self.variables.items()}
        self.unigrams = None if unablated.p_frequency is None else unablated.p_frequency.to(dtype)
        self.scale = unablated.readout.scale
        self.target = int(unablated.targets[token])
        weights, self.likely = self.p.topk(min(64, len(self.p)))
        self.likely_p = weights / weights.sum()

    def reach(self, low, high, coefficients):
        """The largest |f|, (m,), given the extremes of u."""
        gain = (coefficients.gain * self.scale).abs()
        reach = gain * torch.maximum(high.abs(), low.abs())
        for name, c in coefficients.by_variable().items():
            reach = reach + c.abs() * self.most[name]
        return reach

    def changes(self, directions, rows, pathways):
        """Changes by the edits ``rows`` of some directions, for each `Coefficients`: list of dict,
        see `PathwaySums.changes`."""
        parts = []
        scratch = directions.scratch
        groups = -(-len(rows) * PIECE // CACHED)
        for group in torch.arange(len(rows), device=rows.device).tensor_split(groups):
            sums = [PathwaySums(self, scratch, c.at(group)) for c in pathways]
            # Under p, about: e^f stays near one whatever an edit adds to all logits.
            mean = directions.at(rows[group], self.likely).to(self.p.dtype) @ self.likely_p
            size = CACHED // (len(group) * PIECE) * PIECE
            for start in range(0, len(self.p), size):
                some = slice(start, start + size)
                # All pathways push by the same u: fetched once.
                u = directions.u[:, some]
                u = torch.index_select(
                    u, 0, rows[group], out=scratch.take("u", (len(group), u.shape[1]), u)
                ).to(self.p.dtype)
                u.sub_(mean[:, None])
                for one in sums:
                    one.add(u, some)
            parts.append([one.changes() for one in sums])
        return [
            {name: torch.cat([part[name] for part in same]) for name in same[0]}
            for same in zip(*parts)
        ]


class PathwaySums:
    """The sums of one pathway of some edits at one token, (m,) each."""

    def __init__(self, token, scratch, coefficients):
        self.token = token
        self.scratch = scratch
        self.gain = (coefficients.gain * (token.scale * LOG2E))[:, None]
        self.moved = [
            ((c * LOG2E)[:, None], token.variables[name])
            for name, c in coefficients.by_variable().items()
            if c.any()
        ]
        self.a, self.b, self.c, self.at_frequency = [], [], [], []
        self.at_target = torch.full_like(coefficients.gain, torch.nan)

    def add(self, u, some):
        """Add a slice of the vocabulary, where the edits' u are (m, v)."""
        token, scratch = self.token, self.scratch
        f = torch.mul(u, self.gain, out=scratch.take("f", u.shape, u))
        for c, q in self.moved:
            f.addcmul_(c, q[some])
        if some.start <= token.target < some.stop:
            self.at_target = f[:, token.target - some.start] / LOG2E
        if token.unigrams is not None:
            self.at_frequency += weighted(f, token.unigrams[some], scratch)
        tilted = torch.exp2(f, out=scratch.take("tilted", f.shape, f))
        self.c += weighted(f.mul_(tilted), token.p[some], scratch)
        # Less one, lest the tail's small terms are lost in a sum near one.
        self.a += weighted(tilted.sub_(1), token.p[some], scratch)
        self.b += weighted(tilted, token.py[some], scratch)

    def changes(self):
        """Log A less f at the target, (B + C)/A, and less the mean of f under the unigrams.

        Dict of (m,) by what `Measure.tilted` is: ``"target"``, ``"excess"``, ``"unigrams"``.
        """
        a, b, c = total(self.a), total(self.b), total(self.c) / LOG2E
        log_a = torch.log1p(a)
        out = {"target": log_a - self.at_target, "excess": log_a - (b + c) / (1 + a)}
        if self.at_frequency:
            out["unigrams"] = log_a - total(self.at_frequency) / LOG2E
        return out


def products(values, weights):
    """The parts that values @ weights, (m,), is the sum of, each of terms few enough."""
    pairs = zip(values.split(PIECE, -1), weights.split(PIECE))
    return [some @ part for some, part in pairs]


def weighted(values, weights, scratch):
    """`products`, however few the rows."""
    if len(values) >= MANY:
        return products(values, weights)
    # Added up pairwise.
    return [torch.mul(values, weights, out=scratch.take("products", values.shape, values)).sum(-1)]


def total(parts):
    """Their sum, in float64."""
    return torch.stack(parts).sum(0, dtype=torch.float64)
