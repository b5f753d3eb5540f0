"""The closed form, evaluated pair by pair: O(V) a neuron and token, no unembedding."""

from .measures import change, outcome, split, variants_of


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
        self.clean = outcome(readout.finish(raw), targets, log_frequency)


def ablated(base, u, token, temper, gain, carry=None):
    """Final logits of one token under the ablation of several neurons, (m, V).

    ``u`` is (m, V); ``temper``, ``gain`` and ``carry`` are (m,).
    """
    offset = base.readout.offset.to(u.dtype)
    clean = base.raw[token].to(u.dtype) - offset
    raw = offset + temper[:, None] * clean + gain[:, None] * u
    if carry is not None:
        raw = raw + carry[:, None] * base.mu[token].to(u.dtype)
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


def exact_token(base, u, token, coefficients, effects):
    """Effects of m neurons on one token, (m, E). Coefficients are (m,)."""
    out = u.new_empty(len(u), len(effects))
    targets = base.targets[token].expand(len(u))
    before = base.readout.finish(base.raw[token].to(u.dtype))
    clean = outcome(before[None], targets[:1], base.log_frequency)
    for variant in variants_of(effects):
        source = coefficients["total" if variant == "frequency_direct" else variant]
        logits = ablated(base, u, token, source.temper, source.gain, source.carry)
        if variant == "frequency_direct":
            logits = put_back(logits, before, base.frequency.to(u.dtype))
        after = outcome(logits, targets, base.log_frequency)
        for column, effect in enumerate(effects):
            measure, of = split(effect)
            if of == variant:
                out[:, column] = change(measure, after[measure], clean[measure])
    return out
