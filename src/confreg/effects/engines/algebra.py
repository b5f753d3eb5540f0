"""What every closed form works with: the tokens as they are, and what edits add to their logits."""

import math
import threading

import torch

from ..geometry import Coefficients
from .sums import products, total
from .tuning import CACHED


class Unablated:
    """Some tokens as they are without any edit.

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
    accepted : Tensor (T, A) int64 or None
        See `Tokens`.
    """

    def __init__(
        self, readout, raw, targets, mu=None, frequency=None, log_frequency=None, accepted=None
    ):
        self.readout = readout
        self.raw = raw
        self.targets = targets
        self.mu = mu
        self.frequency = frequency
        self.log_frequency = log_frequency
        self.accepted = accepted
        # exp(-inf) is 0: rows that no token owns.
        self.p_frequency = None if log_frequency is None else log_frequency.exp()

    def tilts(self, effects):
        """Whether effects follow from the three expectations: see `Measure.tilted`."""
        return self.readout.softcap is None and all(e.measure.tilted for e in effects)

    def logits(self, token, dtype):
        """Final logits of one token, (1, V)."""
        return self.readout.finish(self.raw[token].to(dtype))[None]

    def given(self, token):
        """Further arguments of measures at one token, see `confreg.effects.measures.Measure`."""
        accepted = None if self.accepted is None else self.accepted[token][None]
        found = {"log_frequency": self.log_frequency, "accepted": accepted}
        return {name: value for name, value in found.items() if value is not None}

    def variables(self, token, dtype):
        """What edits add multiples of, besides u: dict of (V,).

        ``"logits"``, less their offset, for the temperature; ``"post_norm"``, its μ;
        ``"frequency"``, the direction of the token frequencies.
        """
        rows = {"logits": self.raw[token].to(dtype) - self.readout.offset.to(dtype)}
        if self.mu is not None:
            rows["post_norm"] = self.mu[token].to(dtype)
        rows = {name: row * self.readout.scale for name, row in rows.items()}
        if self.frequency is not None:
            rows["frequency"] = self.frequency.to(dtype)
        return rows


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


class Directions:
    """What a span of the edits adds to raw logits: u, one vector over the vocabulary an edit.

    Parameters
    ----------
    u : Tensor (n, V)
        Changed in place by ``centre``.
    centre : Tensor (V,), optional
        A distribution over the vocabulary under which to take each edit's mean off: softmax
        does not see it, and rounding does.
    frequency, p_frequency : Tensor (V,), optional
        As of `Unablated`.

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

    def cut(self, count):
        """Those of the first edits."""
        found = Directions.__new__(Directions)
        found.scratch = self.scratch
        for name in ("u", "low", "high", "along", "at_frequency"):
            value = getattr(self, name)
            setattr(found, name, None if value is None else value[:count])
        return found

    def at(self, rows, entries):
        """u of some edits at some vocabulary entries, (m, K)."""
        # Several times faster than indexing with rows and entries.
        place = (rows * self.u.shape[1])[:, None] + entries
        return self.u.view(-1).index_select(0, place.view(-1)).view(place.shape)

    def product(self, weights):
        """u @ weights, (n,), without the digits that a long product loses."""
        return total(products(self.u, weights)).to(self.u.dtype)


def frequency_kept(total, scale, along, variables_along):
    """The edit with the logits' component along the frequency direction v put back.

    ℓ'' = ℓ' − (f·v) v, f being what the total effect adds to the logits.

    Parameters
    ----------
    total : Coefficients
        Of the total effect, of any shape.
    scale : float
        The readout's.
    along : Tensor
        u·v, of a shape that goes with ``total``.
    variables_along : dict of str to Tensor
        q·v of the `Unablated.variables`.
    """
    back = -total.gain * (scale * along)
    for name, c in total.by_variable().items():
        back = back - c * variables_along[name]
    return Coefficients(total.temper, total.gain, total.carry, back)


def edited(unablated, u, token, coefficients):
    """Final logits of one token under m edits: u is (m, V), result too."""
    offset = unablated.readout.offset.to(u.dtype)
    clean = unablated.raw[token].to(u.dtype) - offset
    raw = torch.mul(u, coefficients.gain[:, None])
    raw.addcmul_(coefficients.temper[:, None], clean)
    if coefficients.carry is not None:
        raw.addcmul_(coefficients.carry[:, None], unablated.mu[token].to(u.dtype))
    if unablated.readout.shifted:
        raw += offset
    return unablated.readout.finish(raw)
