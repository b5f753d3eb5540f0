"""Several neurons of a layer ablated together, in closed form.

A set S moves the residual by y = Σ_i δ_i w_i instead of δ w, so with x' = x + y

    ℓ' = c₀ + (s/s')(ℓ − c₀) + (1/s') Σ_i δ_i u_i

and ℓ + (1/s) Σ_i δ_i u_i with the norm's scale frozen. Under a post-norm with scales s_m of the
MLP's output m and s_m' of m + y, δ_i becomes δ_i/s_m' and (s_m/s_m' − 1) m̂ is added to x'.
A clipped ablation is one whose δ_i is 0 on one side of the value.
"""

import torch

from .exact import CACHED, put_back
from .measures import change, measures_of, outcome, paired, split, variants_of
from .temperature import tempering
from .values import replaced
from .write import take


class Written:
    """What the neurons of one of the batch's sets write.

    Attributes
    ----------
    members : Tensor (k,) int64
        Neurons of the layer.
    values : Tensor (k,) float32
        What replaces their activations.
    sides : Tensor (k,) int8
        Where it does, see `confreg.effects.values.replaced`.
    weights, directions : Tensor (k, d)
    u : Tensor (k, V)
    """

    def __init__(self, block, number):
        device = block.raw.device
        self.members = block.batch.sets[number].to(device)
        self.values = block.batch.set_values[number].to(device)
        self.sides = block.batch.side(number)
        self.weights = block.write.weights(self.members, block.activation)
        self.directions = block.write.directions(self.weights)
        self.u = block.readout.directions(self.directions)


class SetChange:
    """What ablating one set does to the final residual of some tokens.

    Parameters
    ----------
    block : Block
    written : Written
    tokens : slice or Tensor (T,) int64
    dtype : torch.dtype
        In which to compute.
    """

    def __init__(self, block, written, tokens, dtype=torch.float32):
        readout, write = block.readout, block.write
        positions = block.positions[tokens]
        self.u = written.u.to(dtype)
        activation = take(block.activation, positions).index_select(-1, written.members).to(dtype)
        self.delta = replaced(activation, written.values, written.sides) - activation
        self.carry = None
        residual = take(block.residual, positions).to(dtype)
        moved = self.delta @ written.directions.to(dtype)
        if write.post_norm is not None:
            output = write.centre(take(write.post_input, positions).to(dtype))
            added = write.centre(self.delta @ written.weights.to(dtype))
            before, after = (
                (x.square().mean(-1, keepdim=True) + write.post_eps).sqrt()
                for x in (output, output + added)
            )
            self.delta = self.delta / after
            self.carry = before / after - 1
            carried = write.gain(dtype) * output / before
            self.mu = readout.directions(carried.float()).to(dtype)
            moved = moved / after + self.carry * carried
        self.before = readout.norm_scale(residual)[:, None]
        self.after = readout.norm_scale(residual + moved)[:, None]

    def logits(self, readout, raw, variant):
        """Final logits of ``"total"`` or ``"direct"``, (T, V), from the original raw ones."""
        push = self.delta @ self.u
        if self.carry is not None:
            push = push + self.carry * self.mu
        if variant == "direct":
            return readout.finish(raw + push / self.before)
        offset = readout.offset.to(raw.dtype)
        tempered = self.before / self.after * (raw - offset)
        return readout.finish(offset + tempered + push / self.after)


def set_effects(block, written, tokens, clean=None, dtype=torch.float32):
    """Effects of one of the batch's sets on some tokens, (T, E).

    Parameters
    ----------
    block : Block
    written : Written
    tokens : Tensor (T,) int64
    clean : dict of str to Tensor, optional
        Measures of the unablated model at all tokens, if they are known already.
    dtype : torch.dtype
    """
    readout, names = block.readout, block.batch.effects
    found = torch.empty(len(tokens), len(names), dtype=dtype, device=block.raw.device)
    compared, _ = paired(measures_of(names))
    # Differences of small numbers: in float64 from the closed form on.
    work = torch.float64 if compared else dtype
    moved = SetChange(block, written, tokens, work)
    raw = take(block.raw, block.positions[tokens]).to(work)
    before = readout.finish(raw)
    for variant in variants_of(names):
        after = moved.logits(readout, raw, "direct" if variant == "direct" else "total")
        if variant == "frequency_direct":
            after = put_back(after, before, block.frequency.to(work))
        wanted = measures_of(names, variant)
        known = None if clean is None else {name: v[tokens] for name, v in clean.items()}
        values = compare(before, after, block.targets[tokens], wanted, block.log_frequency, known)
        for column, (measure, of) in enumerate(map(split, names)):
            if of == variant:
                found[:, column] = values[measure].to(dtype)
    return found


def compare(before, after, targets, wanted, log_frequency, clean=None):
    """Changes of measures between original and ablated final logits, dict of (T,)."""
    compared, single = paired(wanted)
    if clean is None:
        clean = outcome(before, targets, single, log_frequency)
    ablated = outcome(after, targets, single, log_frequency)
    found = {name: change(name, ablated[name], clean[name]) for name in single}
    if compared:
        found.update(tempering(before.double(), after.double()))
    return found


def close_sets(block, clean, tally, sampled):
    """The closed form of every set on every token; ``sampled`` as of `confreg.effects.sweep`.

    ``clean`` are measures of the unablated model, dict of (T,).
    """
    size = max(1, CACHED // block.raw.shape[-1])
    every = block.batch.tokens().to(block.raw.device)
    for number in range(len(block.batch.sets)):
        row, written = slice(number, number + 1), Written(block, number)
        for tokens in every.split(size):
            if not len(tokens):
                continue
            some = slice(int(tokens[0]), int(tokens[-1]) + 1)
            effects = set_effects(block, written, tokens, clean)
            tally.add(row, tokens.cpu(), effects[None])
            mask = sampled(row, some)
            if mask is not None and mask[0, tokens - tokens[0]].any():
                checked = mask[0, tokens - tokens[0]]
                truth = set_effects(block, written, tokens[checked], dtype=torch.float64)
                tally.check(effects[checked], truth)
