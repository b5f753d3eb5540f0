"""Moments of the tokens' distributions: their own, and joint ones with what edits add.

The products of the second order, in slices of the vocabulary that stay in the
cache: neither p nor u² is ever held whole.
"""

import torch

from .tuning import BLOCK, TOKENS


class TokenMoments:
    """Of some tokens: log p, and moments under p that no edit enters.

    The variables q are those of `Unablated.variables`, by name: the logits less their offset, a
    post-norm's μ and the token-frequency direction, as far as there are any.

    Attributes
    ----------
    log_p : Tensor (T, V)
    same : bool
        Whether the variable ``"logits"`` is y: there is no offset.
    entropy, peak : Tensor (T, 1)
        H, and the largest y.
    mean, reach : dict of str to Tensor (T, 1)
        Mean under p of each variable, and the largest |q| once centred.
    q_y : dict of str to Tensor (T,)
        E[y q_j].
    qq, qq_y : dict of pairs of str to Tensor (T,)
        E[q_j q_k] and E[y q_j q_k].
    at_target, at_frequency, along : dict of str to Tensor (T,)
        Each centred variable at the token's target, its mean under p_freq, and its component
        along the frequency direction.
    """

    def __init__(self, unablated):
        self.unablated = unablated
        # In float64: what p does not sum to one by, all its moments are off by.
        self.log_p = torch.empty_like(unablated.raw)
        for raw, row in zip(unablated.raw.split(TOKENS), self.log_p.split(TOKENS)):
            row.copy_(torch.log_softmax(unablated.readout.finish(raw.double()), -1))
        self.same = not unablated.readout.shifted
        self.blocks = [slice(v, v + BLOCK) for v in range(0, self.log_p.shape[1], BLOCK)]
        self.entropy = torch.zeros_like(self.log_p[:, :1])
        for some in self.blocks:
            part = self.log_p[:, some]
            self.entropy = self.entropy - (part.exp() * part).sum(-1, True)
        self.peak = self.log_p.amax(-1, True) + self.entropy
        self.mean, self.reach = self.centre()
        every = torch.arange(len(self.log_p), device=self.log_p.device)
        self.at_target = self.at(every, unablated.targets.clamp_min(0))[2]
        self.collect()

    def centre(self):
        """Means under p of the variables, and how far each reaches from its mean."""
        zero = torch.zeros_like(self.entropy)
        # About a pivot: p does not sum to one exactly, and logits may share a large offset.
        every = torch.arange(len(self.log_p), device=self.log_p.device)
        pivots = self.uncentred(every, self.log_p.argmax(-1))
        pivots = {name: q[:, None] for name, q in pivots.items()}
        mean, low, high = (dict.fromkeys(pivots, zero + x) for x in (0.0, torch.inf, -torch.inf))
        for some in self.blocks:
            p = self.log_p[:, some].exp()
            for name, q in self.uncentred(slice(None), some).items():
                mean[name] = mean[name] + (p * (q - pivots[name])).sum(-1, True)
                low[name] = torch.minimum(low[name], q.amin(-1, True))
                high[name] = torch.maximum(high[name], q.amax(-1, True))
        mean = {name: m + pivots[name] for name, m in mean.items()}
        reach = {n: torch.maximum(high[n] - m, m - low[n]) for n, m in mean.items()}
        return mean, reach

    def collect(self):
        """The second moments, and how the variables meet the token frequencies."""
        zero = torch.zeros_like(self.entropy[:, 0])
        unigrams, direction = self.unablated.p_frequency, self.unablated.frequency
        self.q_y = dict.fromkeys(self.mean, zero)
        self.at_frequency, self.along = dict(self.q_y), dict(self.q_y)
        pairs = [(one, other) for one in self.mean for other in self.mean]
        self.qq, self.qq_y = dict.fromkeys(pairs, zero), dict.fromkeys(pairs, zero)
        for some in self.blocks:
            p, py, qs = self.weights(some)
            for j, one in qs.items():
                self.q_y[j] = self.q_y[j] + (py * one).sum(-1)
                if unigrams is not None:
                    self.at_frequency[j] = self.at_frequency[j] + one @ unigrams[some]
                if direction is not None:
                    self.along[j] = self.along[j] + one @ direction[some]
                for k, other in qs.items():
                    both = one * other
                    self.qq[j, k] = self.qq[j, k] + (p * both).sum(-1)
                    self.qq_y[j, k] = self.qq_y[j, k] + (py * both).sum(-1)

    def uncentred(self, tokens, entries):
        """The variables at some tokens and entries, by name."""
        unablated, scale = self.unablated, self.unablated.readout.scale
        if self.same:
            out = {"logits": self.log_p[tokens, entries]}
        else:
            logits = unablated.raw[tokens, entries] - unablated.readout.offset[entries]
            out = {"logits": scale * logits}
        if unablated.mu is not None:
            out["post_norm"] = scale * unablated.mu[tokens, entries]
        if unablated.frequency is not None:
            out["frequency"] = unablated.frequency[entries]
        return out

    def weights(self, some):
        """For all tokens and a slice of the vocabulary: p, p·y and the variables, each (T, v)."""
        log_p = self.log_p[:, some]
        p = log_p.exp()
        variables = self.uncentred(slice(None), some)
        variables = {name: q - self.mean[name] for name, q in variables.items()}
        return p, p * (log_p + self.entropy), variables

    def at(self, tokens, entries):
        """For one token and K entries, or an entry a token: p, p·y and the variables, each (K,)."""
        log_p = self.log_p[tokens, entries]
        p = log_p.exp()
        variables = self.uncentred(tokens, entries)
        variables = {name: q - self.mean[name][tokens, 0] for name, q in variables.items()}
        return p, p * (log_p + self.entropy[tokens, 0]), variables


class JointMoments:
    """Joint moments under p of u, centred, with y and the variables: each (n, T).

    Attributes
    ----------
    mean : E[u]; y : E[y u]; square : E[u²]; square_y : E[y u²]
    q, q_y : dicts of str to E[u q_j] and E[y u q_j]
    reach : largest |u|
    """

    def __init__(self, own, directions):
        u, tokens = directions.u, len(own.log_p)
        first = second = u.new_zeros(0, 0)
        for some in own.blocks:
            p, py, qs = own.weights(some)
            rows = [p, py]
            for name, q in qs.items():
                # Where q is y, p·q is there already.
                rows += [py * q] if name == "logits" and own.same else [p * q, py * q]
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
        low, high = directions.low[:, None], directions.high[:, None]
        self.reach = torch.maximum(high - self.mean, self.mean - low)
        rest = [self.y, *rest] if own.same else rest
        self.q = dict(zip(own.q_y, rest[0::2]))
        self.q_y = {n: x - self.mean * own.q_y[n] for n, x in zip(own.q_y, rest[1::2])}

    def uncentred_squares(self):
        """E[u²] and E[y u²] without u's mean off."""
        square = self.square + self.mean.square()
        return square, self.square_y + 2 * self.mean * self.y
