"""Edits that write into several directions at once, in closed form.

A set S of neurons moves the residual by y = Σ_i δ_i w_i instead of δ w, so with x' = x + y

    ℓ' = c₀ + (s/s')(ℓ − c₀) + (1/s') Σ_i δ_i u_i

and ℓ + (1/s) Σ_i δ_i u_i with the norm's scale frozen. Under a post-norm with scales s_m of the
MLP's output m and s_m' of m + y, δ_i becomes δ_i/s_m' and (s_m/s_m' − 1) m̂ is added to x'.
"""

import torch

from ..compare import by_pathway, changes, measured
from ..frequency import put_back
from ..prediction import Prediction
from ..readout import take
from .closed import at, draw
from .tuning import CACHED


class Written:
    """What one edit writes; ``before`` is an edit that writes into the same directions.

    Attributes
    ----------
    delta : Tensor (k, T)
    weights, directions : Tensor (k, d)
        w, and what it adds to the residual per unit of α.
    u : Tensor (k, V)
    unknown : Tensor (1, T) bool or None
        As of `Observed.written`.
    """

    def __init__(self, observed, edit, seen, before=None):
        *both, self.unknown = observed.written(edit, seen)
        self.delta, self.weights = (x[0] for x in both)
        if before is None:
            self.directions = observed.route.directions(self.weights)
            self.u = observed.readout.directions(self.directions)
        else:
            self.directions, self.u = before.directions, before.u


class Moved:
    """What one edit does to the final residual of some tokens.

    Parameters
    ----------
    observed : Observed
    written : Written
    tokens : Tensor (t,) int64
    dtype : torch.dtype
        In which to compute.
    """

    def __init__(self, observed, written, tokens, dtype=torch.float32):
        readout, route = observed.readout, observed.route
        positions = observed.positions[tokens]
        self.u = written.u.to(dtype)
        delta = written.delta[:, tokens].T.contiguous().to(dtype)
        residual = take(observed.residual, positions).to(dtype)
        moved = delta @ written.directions.to(dtype)
        weights = written.weights.to(dtype)
        after, self.kappa, carried = route.change_together(weights, delta, positions)
        if self.kappa is not None:
            delta = delta / after
            self.mu = readout.directions(carried.float()).to(dtype)
            moved = moved / after + self.kappa * carried
        self.alpha = delta
        self.before = readout.norm_scale(residual)[:, None]
        self.after = readout.norm_scale(residual + moved)[:, None]

    def logits(self, readout, raw, pathway):
        """Final logits of ``"total"`` or ``"direct"``, (t, V), from the original raw ones."""
        push = self.alpha @ self.u
        if self.kappa is not None:
            push = push + self.kappa * self.mu
        if pathway == "direct" or not readout.normed:
            return readout.finish(raw + push / self.before)
        offset = readout.offset.to(raw.dtype)
        tempered = self.before / self.after * (raw - offset)
        return readout.finish(offset + tempered + push / self.after)


def several(tally, observed, clean):
    """Every edit at every token, one edit at a time.

    Parameters
    ----------
    tally : Tally
    observed : Observed
    clean : dict of str to Tensor (T,)
        Measures of the unedited model.
    """
    size = max(1, CACHED // observed.raw.shape[-1])
    chosen = observed.unit.tokens.chosen().to(observed.raw.device)
    sampled, seen, written = draw(observed), observed.rows(), None
    alike = getattr(observed.edits, "alike", None)
    for number in range(len(observed.edits)):
        row = slice(number, number + 1)
        same = number > 0 and alike is not None and alike(number - 1, number)
        edit = observed.edits.cut(number, number + 1)
        written = Written(observed, edit, seen, written if same else None)
        for tokens in chosen.split(size):
            if not len(tokens):
                continue
            values = effects_at(observed, written, tokens, clean)
            tally.add(row, tokens.cpu(), values[None], at(written.unknown, tokens))
            mask = sampled(row, tokens.cpu())
            if mask is not None:
                checked = mask[0]
                truth = effects_at(observed, written, tokens[checked], dtype=torch.float64)
                tally.check(values[checked], truth)


def effects_at(observed, written, tokens, clean=None, dtype=torch.float32):
    """Effects of one edit on some tokens, (t, E).

    Parameters
    ----------
    observed : Observed
    written : Written
    tokens : Tensor (t,) int64
    clean : dict of str to Tensor (T,), optional
        Measures of the unedited model at all tokens, if they are known already.
    dtype : torch.dtype
    """
    readout, effects = observed.readout, observed.unit.effects
    found = torch.empty(len(tokens), len(effects), dtype=dtype, device=observed.raw.device)
    measures = [effect.measure for effect in effects]
    # Differences of small numbers: in float64 from the closed form on.
    work = torch.float64 if any(one.comparing for one in measures) else dtype
    moved = Moved(observed, written, tokens, work)
    raw = take(observed.raw, observed.positions[tokens]).to(work)
    targets = observed.targets[tokens]
    clean_given = observed.given(tokens, moved.before[:, 0])
    before = Prediction(readout.finish(raw), targets, clean_given)
    given = observed.given(tokens, moved.after[:, 0])
    if clean is None:
        known = measured(before, measures)
    else:
        known = {name: values[tokens] for name, values in clean.items()}
    for pathway, places in by_pathway(effects).items():
        logits = moved.logits(readout, raw, "direct" if pathway == "direct" else "total")
        if pathway == "frequency_direct":
            logits = put_back(logits, before.logits, observed.frequency.to(work))
        after = Prediction(logits, targets, given)
        values = changes(before, after, [effects[column] for column in places], known)
        for column, value in zip(places, values):
            found[:, column] = value.to(dtype)
    return found
