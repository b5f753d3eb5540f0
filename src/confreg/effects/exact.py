"""The closed form, evaluated pair by pair: O(V) a neuron and token, no unembedding."""

import torch

from .measures import change, measures_of, outcome, split, variants_of

CACHED = 2**19  # numbers at once: what a few passes find in the cache


class Base:
    """The unablated side of some tokens.

    Parameters
    ----------
    readout : Readout
    raw : Tensor (T, V) float32
        Raw logits.
    targets : Tensor (T,) int64
    mu : Tensor (T, V) or None
        W_U(γ∘P m̂) of a post-norm.
    frequency, log_frequency : Tensor (V,) or None
    """

    def __init__(self, readout, raw, targets, mu=None, frequency=None, log_frequency=None):
        self.readout = readout
        self.raw = raw
        self.targets = targets
        self.mu = mu
        self.frequency = frequency
        self.log_frequency = log_frequency

    def clean(self, token, wanted, dtype):
        """Unablated final logits (V,) of one token and their measures."""
        logits = self.readout.finish(self.raw[token].to(dtype))
        target = self.targets[token : token + 1]
        return logits, outcome(logits[None], target, wanted, self.log_frequency)


def ablated(base, u, token, coefficients):
    """Final logits of one token under the ablation of m neurons: u is (m, V), result too."""
    offset = base.readout.offset.to(u.dtype)
    clean = base.raw[token].to(u.dtype) - offset
    raw = torch.mul(u, coefficients.gain[:, None])
    raw.addcmul_(coefficients.temper[:, None], clean)
    if coefficients.carry is not None:
        raw.addcmul_(coefficients.carry[:, None], base.mu[token].to(u.dtype))
    if base.readout.shifted:
        raw += offset
    return base.readout.finish(raw)


def put_back(after, before, direction):
    """ℓ'' = ℓ' + ((ℓ − ℓ')·v) v: the component along v as if nothing had been ablated."""
    return after + ((before - after) @ direction)[:, None] * direction


def exact(base, u, coefficients, effects):
    """Effects of every neuron on every token of a block.

    Parameters
    ----------
    base : Base
    u : Tensor (n, V)
    coefficients : dict of str to Coefficients, each (n, T)
    effects : tuple of str

    Returns
    -------
    Tensor (n, T, E), of u's dtype
    """
    n, tokens = len(u), len(base.raw)
    out = u.new_empty(n, tokens, len(effects))
    for token in range(tokens):
        pairs = {name: c.at(slice(None), token) for name, c in coefficients.items()}
        out[:, token] = exact_token(base, u, token, pairs, effects)
    return out


def exact_token(base, u, token, coefficients, effects, rows=None, dtype=None):
    """Effects on one token.

    Parameters
    ----------
    base, effects
        As of `exact`.
    u : Tensor (n, V)
    token : int
    coefficients : dict of str to Coefficients, each (m,)
    rows : Tensor (m,) int64, optional
        The neurons, as rows of ``u``; without it all, m = n.
    dtype : torch.dtype, optional
        In which to compute; by default that of ``u``.

    Returns
    -------
    Tensor (m, E)
    """
    dtype = dtype or u.dtype
    count = len(u) if rows is None else len(rows)
    out = torch.empty(count, len(effects), dtype=dtype, device=u.device)
    before, clean = base.clean(token, measures_of(effects), dtype)
    size = max(1, CACHED // u.shape[-1])
    for start in range(0, count, size):
        some = slice(start, min(start + size, count))
        part = (u[some] if rows is None else u[rows[some]]).to(dtype)
        for variant in variants_of(effects):
            source = coefficients["total" if variant == "frequency_direct" else variant]
            logits = ablated(base, part, token, source.at(some))
            if variant == "frequency_direct":
                logits = put_back(logits, before, base.frequency.to(dtype))
            targets = base.targets[token].expand(len(logits))
            after = outcome(logits, targets, measures_of(effects, variant), base.log_frequency)
            for column, effect in enumerate(effects):
                measure, of = split(effect)
                if of == variant:
                    out[some, column] = change(measure, after[measure], clean[measure]).to(dtype)
    return out
