"""The closed form, evaluated pair by pair: O(V) a neuron and token, no unembedding."""

import math
import threading

import torch

from .geometry import Coefficients
from .measures import TILTED, change, measures_of, outcome, paired, split, variants_of
from .parallel import hand_on
from .temperature import tempering

CACHED = 2**19  # numbers at once: what a few passes find in the cache
PIECE = 2**11  # terms that a float32 product adds up one by one, losing digits as it goes
MANY = 32  # rows for which products of so few terms are the fastest sums
SAFE = 20.0  # |f| up to which float32 sums of f e^f keep their digits
LOG2E = 1.4426950408889634  # exp2 is twice as fast as exp


def tilts(readout, effects):
    """Whether effects follow from E_p[e^f], E_p[y e^f] and E_p[f e^f]: see `Tilt`."""
    return readout.softcap is None and set(measures_of(effects)) <= set(TILTED)


class Base:
    """The unablated side of some tokens.

    Attributes
    ----------
    readout : Readout
    raw : Tensor (T, V) float32
        Raw logits.
    targets : Tensor (T,) int64
    mu : Tensor (T, V) or None
        W_U(γ∘P m̂) of a post-norm.
    frequency, log_frequency, p_frequency : Tensor (V,) or None
        The token-frequency direction, log p_freq, and p_freq.
    """

    def __init__(self, readout, raw, targets, mu=None, frequency=None, log_frequency=None):
        self.readout = readout
        self.raw = raw
        self.targets = targets
        self.mu = mu
        self.frequency = frequency
        self.log_frequency = log_frequency
        # exp(-inf) is 0: rows that no token owns.
        self.p_frequency = None if log_frequency is None else log_frequency.exp()

    def clean(self, token, wanted, dtype):
        """Unablated final logits (V,) of one token and their measures."""
        logits = self.readout.finish(self.raw[token].to(dtype))
        target = self.targets[token : token + 1]
        return logits, outcome(logits[None], target, wanted, self.log_frequency)

    def variables(self, token, dtype):
        """What ablations add multiples of: the logits less their offset, μ, and the frequency
        direction. List of (V,)."""
        rows = [self.raw[token].to(dtype) - self.readout.offset.to(dtype)]
        if self.mu is not None:
            rows.append(self.mu[token].to(dtype))
        rows = [row * self.readout.scale for row in rows]
        return rows if self.frequency is None else [*rows, self.frequency.to(dtype)]


class Scratch(threading.local):
    """Memory that a thread works in again and again: the first touch costs as much as the work."""

    def __init__(self):
        self.held = {}

    def take(self, name, shape, like):
        """An uninitialised tensor of a shape, which the next one of its name overwrites."""
        size, key = math.prod(shape), (name, like.dtype)
        if key not in self.held or self.held[key].numel() < size:
            self.held[key] = like.new_empty(size)
        return self.held[key][:size].view(shape)


class Fan:
    """What a chunk of neurons adds to raw logits.

    Parameters
    ----------
    u : Tensor (n, V)
        Changed in place by ``centre``.
    centre : Tensor (V,), optional
        A distribution over the vocabulary under which to take each neuron's mean off: softmax
        does not see it, and rounding does.
    frequency, p_frequency : Tensor (V,), optional
        As of `Base`.

    Attributes
    ----------
    u : Tensor (n, V)
    low, high : Tensor (n,)
        Extremes over the vocabulary.
    along, at_frequency : Tensor (n,) or None
        u's component along the frequency direction, and its mean under p_freq.
    """

    def __init__(self, u, centre=None, frequency=None, p_frequency=None):
        self.u = u
        extremes = []
        for some in u.split(max(1, CACHED // u.shape[1])):
            if centre is not None:
                some.sub_((some @ centre)[:, None])
            extremes.append((some.amin(-1), some.amax(-1)))
        self.low, self.high = (torch.cat(same) for same in zip(*extremes))
        self.scratch = Scratch()
        self.along = None if frequency is None else self.product(frequency)
        self.at_frequency = None if p_frequency is None else self.product(p_frequency)

    def at(self, rows, entries):
        """u of some neurons at some vocabulary entries, (m, K)."""
        # Several times faster than indexing with rows and entries.
        place = (rows * self.u.shape[1])[:, None] + entries
        return self.u.view(-1).index_select(0, place.view(-1)).view(place.shape)

    def product(self, weights):
        """u @ weights, (n,), without the digits that a long product loses."""
        return total(products(self.u, weights)).to(self.u.dtype)


class Tilt:
    """One token's side of the exact sums, for `measures.TILTED`.

    With p the model's distribution, H its entropy, y = log p + H and f what the ablation adds to
    the logits: A = E_p[e^f], B = E_p[y e^f], C = E_p[f e^f]; the loss changes by log A − f(target),
    the entropy by log A − (B + C)/A, D(p_freq ‖ p) by log A − E_freq[f].
    """

    def __init__(self, base, token, dtype):
        # In float64: p's own rounding is common to all of its sums.
        log_p = torch.log_softmax(base.readout.finish(base.raw[token].double()), -1)
        p = log_p.exp()
        self.p, self.py = p.to(dtype), (p * (log_p - p @ log_p)).to(dtype)
        variables = base.variables(token, torch.float64)
        self.variables = [(q - p @ q).to(dtype) for q in variables]
        self.most = [q.abs().amax() for q in self.variables]
        self.unigrams = None if base.p_frequency is None else base.p_frequency.to(dtype)
        self.scale = base.readout.scale
        self.target = int(base.targets[token])
        weights, self.likely = self.p.topk(min(64, len(self.p)))
        self.likely_p = weights / weights.sum()

    def reach(self, low, high, coefficients):
        """The largest |f|, (m,), given the extremes of u."""
        gain = (coefficients.gain * self.scale).abs()
        reach = gain * torch.maximum(high.abs(), low.abs())
        for c, most in zip(others(coefficients), self.most):
            reach = reach + c.abs() * most
        return reach

    def effects(self, fan, rows, variants):
        """Measures of the neurons ``rows`` of a fan, for each `Coefficients`: list of dict."""
        parts = []
        scratch = fan.scratch
        groups = -(-len(rows) * PIECE // CACHED)
        for group in torch.arange(len(rows), device=rows.device).tensor_split(groups):
            tilts = [Tilted(self, scratch, c.at(group)) for c in variants]
            # Under p, about: e^f stays near one whatever a neuron adds to all logits.
            mean = fan.at(rows[group], self.likely).to(self.p.dtype) @ self.likely_p
            size = CACHED // (len(group) * PIECE) * PIECE
            for start in range(0, len(self.p), size):
                some = slice(start, start + size)
                # All variants push by the same u: fetched once.
                u = fan.u[:, some]
                u = torch.index_select(
                    u, 0, rows[group], out=scratch.take("u", (len(group), u.shape[1]), u)
                ).to(self.p.dtype)
                u.sub_(mean[:, None])
                for tilt in tilts:
                    tilt.add(u, some)
            parts.append([tilt.measures() for tilt in tilts])
        return [
            {name: torch.cat([part[name] for part in same]) for name in same[0]}
            for same in zip(*parts)
        ]


class Tilted:
    """The sums of one variant of some neurons' ablations with one token, (m,) each."""

    def __init__(self, tilt, scratch, coefficients):
        self.tilt = tilt
        self.scratch = scratch
        self.gain = (coefficients.gain * (tilt.scale * LOG2E))[:, None]
        self.moved = [
            ((c * LOG2E)[:, None], q)
            for c, q in zip(others(coefficients), tilt.variables)
            if c.any()
        ]
        self.a, self.b, self.c, self.at_frequency = [], [], [], []
        self.at_target = torch.full_like(coefficients.gain, torch.nan)

    def add(self, u, some):
        """Add a slice of the vocabulary, where the neurons' u are (m, v)."""
        tilt, scratch = self.tilt, self.scratch
        f = torch.mul(u, self.gain, out=scratch.take("f", u.shape, u))
        for c, q in self.moved:
            f.addcmul_(c, q[some])
        if some.start <= tilt.target < some.stop:
            self.at_target = f[:, tilt.target - some.start] / LOG2E
        if tilt.unigrams is not None:
            self.at_frequency += weighted(f, tilt.unigrams[some], scratch)
        tilted = torch.exp2(f, out=scratch.take("tilted", f.shape, f))
        self.c += weighted(f.mul_(tilted), tilt.p[some], scratch)
        # Less one, lest the tail's small terms are lost in a sum near one.
        self.a += weighted(tilted.sub_(1), tilt.p[some], scratch)
        self.b += weighted(tilted, tilt.py[some], scratch)

    def measures(self):
        """`measures.TILTED`, dict of (m,)."""
        a, b, c = total(self.a), total(self.b), total(self.c) / LOG2E
        log_a = torch.log1p(a)
        out = {"loss": log_a - self.at_target, "entropy": log_a - (b + c) / (1 + a)}
        if self.at_frequency:
            out["kl_frequency"] = log_a - total(self.at_frequency) / LOG2E
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


def others(coefficients):
    """The coefficients of `Base.variables`, as far as a variant has them."""
    out = [coefficients.temper - 1, coefficients.carry, coefficients.back]
    return [c for c in out if c is not None]


def frequency_kept(total, scale, along, variables_along):
    """The ablation with the logits' component along the frequency direction v put back.

    ℓ'' = ℓ' − (f·v) v, f being what the total effect adds to the logits.

    Parameters
    ----------
    total : Coefficients
        Of the total effect, of any shape.
    scale : float
        The readout's.
    along : Tensor
        u·v, of a shape that goes with ``total``.
    variables_along : list of Tensor
        q·v of the `Base.variables` that ``total`` has coefficients of.
    """
    back = -total.gain * (scale * along)
    for c, q in zip(others(total), variables_along):
        back = back - c * q
    return Coefficients(total.temper, total.gain, total.carry, back)


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


def through_logits(base, fan, rows, token, coefficients, effects, variant, clean):
    """Effects of one variant from the ablated logits themselves: any measure. Dict of (m,)."""
    before, measures = clean
    compared, wanted = paired(measures_of(effects, variant))
    parts = []
    size = max(1, CACHED // fan.u.shape[-1])
    for start in range(0, len(rows), size):
        some = slice(start, start + size)
        logits = ablated(base, fan.u[rows[some]].to(before), token, coefficients.at(some))
        if variant == "frequency_direct":
            logits = put_back(logits, before, base.frequency.to(before))
        targets = base.targets[token].expand(len(logits))
        after = outcome(logits, targets, wanted, base.log_frequency)
        parts.append({name: change(name, after[name], measures[name]) for name in wanted})
        if compared:  # differences of small numbers: in float64 from the closed form on
            u = fan.u[rows[some]].double()
            logits = ablated(base, u, token, coefficients.at(some).to(torch.float64))
            parts[-1].update(tempering(base.readout.finish(base.raw[token].double()), logits))
    return {name: torch.cat([part[name] for part in parts]) for name in (*wanted, *compared)}


def exact(base, fan, coefficients, effects):
    """Effects of every neuron on every token of a block.

    Parameters
    ----------
    base : Base
    fan : Fan
    coefficients : dict of str to Coefficients, each (n, T)
    effects : tuple of str

    Returns
    -------
    Tensor (n, T, E) float32
    """
    n, tokens = len(fan.u), len(base.raw)
    out = fan.u.new_empty(n, tokens, len(effects))
    rows = torch.arange(n, device=out.device)

    def fill(token, _):
        pairs = {name: c.at(rows, token) for name, c in coefficients.items()}
        out[:, token] = exact_token(base, fan, token, pairs, effects, rows)

    hand_on(lambda token: None, fill, tokens, out.device)
    return out


def exact_token(base, fan, token, coefficients, effects, rows, dtype=torch.float32):
    """Effects of some neurons on one token.

    Parameters
    ----------
    base, fan, effects
        As of `exact`.
    token : int
    coefficients : dict of str to Coefficients, each (m,)
    rows : Tensor (m,) int64
        The neurons, as rows of the fan.
    dtype : torch.dtype
        In which to compute.

    Returns
    -------
    Tensor (m, E) of ``dtype``
    """
    out = torch.empty(len(rows), len(effects), dtype=dtype, device=fan.u.device)
    tilt = Tilt(base, token, dtype) if tilts(base.readout, effects) else None
    found, clean = {}, None
    if tilt:
        moved = {
            variant: frequency_back(base, fan, token, coefficients["total"], rows, dtype)
            if variant == "frequency_direct"
            else coefficients[variant]
            for variant in variants_of(effects)
        }
        low, high = fan.low[rows], fan.high[rows]
        moved = {k: v for k, v in moved.items() if (tilt.reach(low, high, v) < SAFE).all()}
        if moved:
            found = dict(zip(moved, tilt.effects(fan, rows, list(moved.values()))))
    for variant in variants_of(effects):
        if variant not in found:
            own = coefficients["total" if variant == "frequency_direct" else variant]
            clean = clean or base.clean(token, measures_of(effects), dtype)
            found[variant] = through_logits(base, fan, rows, token, own, effects, variant, clean)
        for column, (measure, of) in enumerate(map(split, effects)):
            if of == variant:
                out[:, column] = found[variant][measure].to(dtype)
    return out


def frequency_back(base, fan, token, total, rows, dtype):
    """`frequency_kept` of some neurons with one token, of their total effect's coefficients."""
    v = base.frequency.to(dtype)
    along = fan.along[rows] if dtype == fan.along.dtype else fan.u[rows].to(dtype) @ v
    variables_along = [q @ v for q in base.variables(token, dtype)]
    return frequency_kept(total, base.readout.scale, along, variables_along)
