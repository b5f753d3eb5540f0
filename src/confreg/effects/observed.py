"""What the model did in one trace, read by spans of the unit's edits and of its tokens."""

import torch

from .compare import measured
from .frequency import frequency_direction, log_frequencies
from .measures import entropy, kl_frequency, loss, norm_scale, rank, top1
from .prediction import Prediction
from .readout import take
from .write import Straight


class Observed:
    """What the model did in the trace of one `Unit`.

    Parameters
    ----------
    unit : Unit
    readout : Readout
    write : Write, or None where edits do not go through the MLP
    seen : Tensor (R, L, width)
        What the trace passed to `Site.measure`: before the edit; where the engine makes copies,
        of all of them.
    residual : Tensor (R, L, d)
        Input of the final norm.
    raw : Tensor (R, L, V)
        Output of the unembedding.
    routed : bool
        Whether neurons are of experts: NaN in ``seen`` where they are not there.

    Attributes
    ----------
    edits
        The unit's edits, settled.
    route : Write or Straight
        How they reach the final residual.
    positions, targets : Tensor (T,) int64
    accepted : Tensor (T, A) int64 or None
    log_frequency, frequency : Tensor (V,) or None
        log p_freq, and the token-frequency direction.
    """

    def __init__(self, unit, readout, write, seen, residual, raw, routed=False):
        self.unit = unit
        self.readout = readout
        self.write = write
        self.seen = seen
        self.residual = residual
        self.raw = raw
        self.routed = routed
        self.positions = unit.tokens.positions.to(raw.device)
        self.targets = unit.tokens.targets.to(raw.device)
        self.accepted = unit.tokens.accepted
        if self.accepted is not None:
            self.accepted = self.accepted.to(raw.device)
        self.log_frequency = self.frequency = None
        if unit.counts is not None:
            self.log_frequency = log_frequencies(unit.counts).to(raw.device)
            self.frequency = frequency_direction(self.log_frequency)
        self.edits = unit.edits
        if hasattr(unit.edits, "settled"):
            self.edits = unit.edits.settled(self.rows())
        through = getattr(unit.edits, "into", "residual") == "mlp"
        self.route = write if through and write is not None else Straight()

    def rows(self):
        """What the trace passed to `Site.measure`, unedited, at the tokens: (T, width) float32."""
        count = len(self.positions)
        if torch.equal(self.positions, torch.arange(count, device=self.positions.device)):
            rows = self.seen.reshape(-1, self.seen.shape[-1])[:count]  # all of them: no copy
        else:
            rows = take(self.seen, self.positions)
        return rows.float().to(self.raw.device)

    def written(self, edits, seen):
        """What some edits add to the residual stream: δ (n, k, T) and w (n, k, d).

        And where that is not known, (n, T) bool or None: where an expert's neuron is there and
        what replaces it is NaN. There δ is 0.

        Parameters
        ----------
        edits : Replace, Together ...
            A span of the unit's.
        seen : Tensor (T, width)
            `rows`.
        """
        delta, w = edits.writes(self, seen)
        unknown = delta.isnan() if self.routed else None
        if unknown is not None and unknown.any():
            # If because an activation is NaN, then the neuron is not there.
            delta = delta.masked_fill(unknown, 0.0)
            unknown &= edits.writes(self, seen.nan_to_num(0.0))[0].isnan()
            unknown = unknown.to(self.raw.device)
        if unknown is not None and unknown.dim() == 3:
            unknown = unknown.any(1)
        shapes = f"{tuple(delta.shape)} and {tuple(w.shape)}"
        if delta.dim() == 2:
            delta, w = delta.unsqueeze(1), w.unsqueeze(1)
        count, tokens, d = len(edits), len(self.positions), self.residual.shape[-1]
        fitting = delta.dim() == w.dim() == 3 and delta.shape[:2] == w.shape[:2]
        if not fitting or len(w) != count or (delta.shape[-1], w.shape[-1]) != (tokens, d):
            raise ValueError(
                f"{type(edits).__name__}.writes returned {shapes}: wanted are ({count}, {tokens}) "
                f"and ({count}, {d}), or of several directions each ({count}, k, {tokens}) and "
                f"({count}, k, {d})"
            )
        unknown = unknown if unknown is not None and unknown.any() else None
        return delta.to(self.raw.device), w.float().to(self.raw.device), unknown

    def weights(self, index):
        """Output weights of some neurons of the layer, (n, d) float32."""
        found = self.write.weights(index.to(self.seen.device), self.seen)
        return found.to(self.raw.device)

    def sizes(self):
        """Edits and tokens of a chunk, so that the closed forms fit ``unit.memory``."""
        vocabulary, d = self.raw.shape[-1], self.residual.shape[-1]
        numbers = 0.85 * self.unit.memory / 4
        # A token: raw logits, log p, μ and what making them takes. Larger chunks gain nothing.
        tokens = int(min(256, numbers / 4 / (6 * vocabulary)))
        tokens = max(1, min(tokens, len(self.positions)))
        # An edit: u and its making, a one-hot row, directions, powers, tables of its pairs.
        each = 1.4 * vocabulary + self.seen.shape[-1] + 4 * d + 6144 + 96 * tokens
        edits = int((numbers - 6 * vocabulary * tokens) / each)
        return max(1, min(edits, len(self.edits))), tokens

    def chunks(self, size):
        """The tokens at which effects are wanted, ``size`` at a time: slices, or indices (t,)."""
        if self.unit.tokens.wanted is None:
            return spans(len(self.positions), size)
        return [some for some in self.unit.tokens.chosen().split(size) if len(some)]

    def logits(self, tokens):
        """The model's final logits, (t, V) float32."""
        return self.readout.finish(take(self.raw, self.positions[tokens]).float())

    def given(self, tokens, norm_scale=None):
        """Further arguments of measures at some tokens, see `confreg.effects.measures.Measure`."""
        accepted = None if self.accepted is None else self.accepted[tokens]
        found = {
            "log_frequency": self.log_frequency, "norm_scale": norm_scale, "accepted": accepted
        }  # fmt: skip
        return {name: value for name, value in found.items() if value is not None}


def spans(stop, size, start=0):
    """Slices of at most ``size`` from ``start`` to ``stop``."""
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def unedited(effects, counted):
    """What is measured of the unedited model, list of `Measure`.

    Loss, entropy, the norm's scale, rank and the likeliest token, D(p_freq ‖ p) where tokens are
    ``counted``, and whatever else effects are wanted on.
    """
    usual = [loss, entropy, norm_scale, rank, top1] + [kl_frequency] * counted
    single = [effect.measure for effect in effects if not effect.measure.comparing]
    return list({one.name: one for one in [*usual, *single]}.values())


def unablated(observed):
    """Measures of the unedited model at the unit's tokens, dict of (T,): `unedited`."""
    measures = unedited(observed.unit.effects, observed.log_frequency is not None)
    parts = []
    for tokens in spans(len(observed.positions), observed.sizes()[1]):
        residual = take(observed.residual, observed.positions[tokens]).float()
        given = observed.given(tokens, observed.readout.norm_scale(residual))
        prediction = Prediction(observed.logits(tokens), observed.targets[tokens], given)
        parts.append(measured(prediction, measures))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def activation_changes(observed):
    """How much the watched values change in each copy, (n, T, m) float32.

    Where every wanted token has a row of its own, NaN at others.
    """
    unit = observed.unit
    one_copy = unit.tokens.inputs.numel()
    watched = unit.watched.to(observed.seen.device)
    before = take(observed.seen, observed.positions).index_select(-1, watched).float()
    found = torch.empty(len(unit.edits), *before.shape)
    for j, out in enumerate(found):
        there = take(observed.seen, observed.positions + (j + 1) * one_copy)
        out.copy_(there.index_select(-1, watched).float() - before)
    if unit.tokens.single is not None:
        found[:, ~unit.tokens.wanted.cpu()] = float("nan")
    return found
