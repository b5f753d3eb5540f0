"""Moments of the tokens' distributions: their own, and joint ones with what neurons add.

The products of stage 1 of `confreg.effects.series`, in slices of the vocabulary that stay in the
cache: neither p nor u² is ever held whole.
"""

import torch

BLOCK = 2048  # vocabulary entries at once
TOKENS = 8  # at once in float64


class Side:
    """The tokens' side of a block: log p, and moments under p that no neuron enters.

    The variables q are the logits less their offset, a post-norm's μ and the token-frequency
    direction, as far as there are any: what `exact.others` has coefficients of.

    Attributes
    ----------
    log_p : Tensor (T, V)
    same : bool
        Whether the first variable is y: there is no offset.
    entropy, peak : Tensor (T, 1)
        H, and the largest y.
    mean, reach : list of Tensor (T, 1)
        Mean under p of each variable, and the largest |q| once centred.
    q_y, qq, qq_y : list of, and lists of lists of, Tensor (T,)
        E[y q_j], E[q_j q_k] and E[y q_j q_k].
    at_target, at_frequency, along : list of Tensor (T,)
        Each centred variable at the token's target, its mean under p_freq, and its component
        along the frequency direction.
    """

    def __init__(self, base):
        self.base = base
        # In float64: what p does not sum to one by, all its moments are off by.
        self.log_p = torch.empty_like(base.raw)
        for raw, row in zip(base.raw.split(TOKENS), self.log_p.split(TOKENS)):
            row.copy_(torch.log_softmax(base.readout.finish(raw.double()), -1))
        self.same = not base.readout.shifted
        self.blocks = [slice(v, v + BLOCK) for v in range(0, self.log_p.shape[1], BLOCK)]
        self.entropy = torch.zeros_like(self.log_p[:, :1])
        for some in self.blocks:
            part = self.log_p[:, some]
            self.entropy = self.entropy - (part.exp() * part).sum(-1, True)
        self.peak = self.log_p.amax(-1, True) + self.entropy
        self.mean, self.reach = self.centre()
        every = torch.arange(len(self.log_p), device=self.log_p.device)
        self.at_target = self.at(every, base.targets.clamp_min(0))[2]
        self.collect()

    def centre(self):
        """Means under p of the variables, and how far each reaches from its mean."""
        count = 1 + (self.base.mu is not None) + (self.base.frequency is not None)
        zero = torch.zeros_like(self.entropy)
        mean, low, high = ([zero + x] * count for x in (0.0, torch.inf, -torch.inf))
        # About a pivot: p does not sum to one exactly, and logits may share a large offset.
        every = torch.arange(len(self.log_p), device=self.log_p.device)
        pivots = [q[:, None] for q in self.uncentred(every, self.log_p.argmax(-1))]
        for some in self.blocks:
            p = self.log_p[:, some].exp()
            for j, q in enumerate(self.uncentred(slice(None), some)):
                mean[j] = mean[j] + (p * (q - pivots[j])).sum(-1, True)
                low[j] = torch.minimum(low[j], q.amin(-1, True))
                high[j] = torch.maximum(high[j], q.amax(-1, True))
        mean = [m + pivot for m, pivot in zip(mean, pivots)]
        return mean, [torch.maximum(h - m, m - x) for x, h, m in zip(low, high, mean)]

    def collect(self):
        """The second moments, and how the variables meet the token frequencies."""
        zero, count = torch.zeros_like(self.entropy[:, 0]), len(self.mean)
        unigrams, direction = self.base.p_frequency, self.base.frequency
        self.q_y, self.at_frequency, self.along = ([zero] * count for _ in range(3))
        self.qq, self.qq_y = ([[zero] * count for _ in range(count)] for _ in range(2))
        for some in self.blocks:
            p, py, qs = self.weights(some)
            for j, one in enumerate(qs):
                self.q_y[j] = self.q_y[j] + (py * one).sum(-1)
                if unigrams is not None:
                    self.at_frequency[j] = self.at_frequency[j] + one @ unigrams[some]
                if direction is not None:
                    self.along[j] = self.along[j] + one @ direction[some]
                for k, other in enumerate(qs):
                    both = one * other
                    self.qq[j][k] = self.qq[j][k] + (p * both).sum(-1)
                    self.qq_y[j][k] = self.qq_y[j][k] + (py * both).sum(-1)

    def uncentred(self, tokens, entries):
        """The variables at some tokens and entries."""
        base, scale = self.base, self.base.readout.scale
        if self.same:
            out = [self.log_p[tokens, entries]]
        else:
            out = [scale * (base.raw[tokens, entries] - base.readout.offset[entries])]
        if base.mu is not None:
            out.append(scale * base.mu[tokens, entries])
        if base.frequency is not None:
            out.append(base.frequency[entries])
        return out

    def weights(self, some):
        """For all tokens and a slice of the vocabulary: p, p·y and the variables, each (T, v)."""
        log_p = self.log_p[:, some]
        p = log_p.exp()
        variables = [q - m for q, m in zip(self.uncentred(slice(None), some), self.mean)]
        return p, p * (log_p + self.entropy), variables

    def at(self, tokens, entries):
        """For one token and K entries, or an entry a token: p, p·y and the variables, each (K,)."""
        log_p = self.log_p[tokens, entries]
        p = log_p.exp()
        means = [m[tokens, 0] for m in self.mean]
        variables = [q - m for q, m in zip(self.uncentred(tokens, entries), means)]
        return p, p * (log_p + self.entropy[tokens, 0]), variables


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
        first = second = u.new_zeros(0, 0)
        for some in side.blocks:
            p, py, qs = side.weights(some)
            rows = [p, py]
            for j, q in enumerate(qs):
                # Where q is y, p·q is there already.
                rows += [py * q] if j == 0 and side.same else [p * q, py * q]
            rows = torch.cat(rows)
            part = u[:, some]
            if len(first) == 0:
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

    def uncentred_squares(self):
        """E[u²] and E[y u²] without u's mean off."""
        square = self.square + self.mean.square()
        return square, self.square_y + 2 * self.mean * self.y
