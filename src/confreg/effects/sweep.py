"""All neurons of a block over all of its tokens, in chunks that fit a memory budget."""

import torch

from .exact import Base, Fan, exact, exact_token, put_back, tilts
from .frequency import frequency_direction, log_frequencies
from .geometry import final_norm_change
from .heads import activation_changes
from .measures import change, measures_of, outcome, paired, split, variants_of
from .series import series
from .sets import close_sets
from .tally import Tally
from .temperature import tempering
from .values import values_of
from .write import take


def measure(batch, readout, write, activation, residual, raw):
    """Effects of ablating every neuron of a block on every token of it.

    Parameters
    ----------
    batch : Batch
    readout : Readout
    write : Write, or None for the engine ``forward``
    activation : Tensor (R, L, width)
        Input of the down-projection, unablated (where heads are ablated: in every copy).
    residual : Tensor (R, L, d)
        Input of the final norm.
    raw : Tensor (R, L, V)
        Output of the unembedding.

    Returns
    -------
    dict of str to Tensor, on the CPU
        ``effects`` (n, T, E) float32 unless ``batch.reduce``; ``activation`` (n, T) float32 if
        ``batch.activations``; where heads are ablated also ``activation_change`` (n, T,
        neurons) float32, and in any case ``change_sum`` and ``change_abs_sum`` (n, neurons)
        float64 over kept tokens; ``abs_sum`` and ``sum`` (n, E) float64 over kept tokens, NaN left
        out, and ``kept``, how many tokens those are; ``loss``, ``entropy``, ``norm_scale`` (T,)
        float32 and ``rank``, ``top1`` (T,) int64 of the unablated model (with a token frequency
        also ``kl_frequency``); ``pairs``, ``recomputed``, ``sampled``, ``error_sum``,
        ``error_max`` float64 scalars: pairs of a neuron and a token, how many of them
        ``series`` left to ``exact``, how many were recomputed in float64, and the sum and the
        largest of those pairs' errors (each the largest over the pair's effects).
    """
    # A server runs blocks under the autocast of its models' dtype: products of float32 would be
    # of bfloat16.
    with torch.no_grad(), torch.autocast(raw.device.type, enabled=False):
        block = Block(batch, readout, write, activation, residual, raw)
        tally = Tally(batch.count(), batch.keep, len(batch.effects), not batch.reduce)
        clean = unablated(block)
        if batch.engine == "forward":
            compare_copies(block, clean, tally)
        elif batch.sets is not None:
            close_sets(block, clean, tally, draw(batch, block.raw.device))
        else:
            close(block, tally)
        out = tally.result()
        del clean["reciprocal_rank"]  # known from the rank: only its change is measured
        for name, values in clean.items():
            out[name] = values.cpu()
        if batch.values is None:
            out["values"] = block.values.cpu()
        if batch.activations:
            everything = slice(None)
            out["activation"] = block.activations(everything, everything).cpu()
        if batch.heads is not None:
            changes = activation_changes(block)
            if batch.activations:
                out["activation_change"] = changes
            kept = changes[:, batch.keep.cpu()].double()
            out["change_sum"], out["change_abs_sum"] = kept.sum(1), kept.abs().sum(1)
        return out


class Block:
    """What the model did with one batch, read by slices of its neurons and of its tokens."""

    def __init__(self, batch, readout, write, activation, residual, raw):
        self.batch = batch
        self.readout = readout
        self.write = write
        self.activation = activation
        self.residual = residual
        self.raw = raw
        device = raw.device
        self.positions = batch.positions.to(device)
        self.targets = batch.targets.to(device)
        self.neurons = batch.neurons.to(device)
        self.values = values_of(batch, activation).to(device)
        self.frequency = self.log_frequency = None
        if batch.counts is not None:
            self.log_frequency = log_frequencies(batch.counts).to(device)
            self.frequency = frequency_direction(self.log_frequency)

    def sizes(self):
        """Neurons and tokens of a chunk, so that the closed forms fit ``batch.memory``."""
        vocabulary, d = self.raw.shape[-1], self.residual.shape[-1]
        numbers = 0.85 * self.batch.memory / 4
        # A token: raw logits, log p, μ and what making them takes. Larger chunks gain nothing.
        tokens = int(min(256, numbers / 4 / (6 * vocabulary)))
        tokens = max(1, min(tokens, len(self.positions)))
        # A neuron: u and its making, a one-hot row, directions, powers, tables of its pairs.
        each = 1.4 * vocabulary + self.batch.width + 4 * d + 6144 + 96 * tokens
        neurons = int((numbers - 6 * vocabulary * tokens) / each)
        return max(1, min(neurons, len(self.neurons))), tokens

    def logits(self, tokens):
        """The model's final logits, (T, V) float32."""
        return self.readout.finish(take(self.raw, self.positions[tokens]).float())

    def activations(self, neurons, tokens):
        """Unablated activations, (n, T) float32."""
        rows = take(self.activation, self.positions[tokens])
        return rows.index_select(-1, self.neurons[neurons]).T.float()

    def coefficients(self, weights, directions, neurons, tokens, dtype=torch.float32):
        """How each variant moves raw logits: dict of (n, T) `Coefficients`, and m̂ or None."""
        positions = self.positions[tokens]
        weights, directions = weights.to(dtype), directions.to(dtype)
        delta = (self.values[neurons, None] - self.activations(neurons, tokens)).to(dtype)
        alpha, kappa, carried = self.write.change(weights, delta, positions)
        residual = take(self.residual, positions).to(dtype)
        change = final_norm_change(self.readout, residual, directions, alpha, kappa, carried)
        return change, carried

    def fan(self, directions, centre):
        """What some neurons add to raw logits. Holds u once, and while it is made some more."""
        n, vocabulary = len(directions), self.raw.shape[-1]
        if 4 * 2.2 * n * vocabulary < 0.85 * self.batch.memory:
            u = self.readout.directions(directions)
        else:
            u = directions.new_empty(n, vocabulary)
            for some in spans(n, max(1, n // 8)):
                u[some] = self.readout.directions(directions[some])
        p_frequency = None if self.log_frequency is None else self.log_frequency.exp()
        return Fan(u, centre, self.frequency, p_frequency)

    def base(self, tokens, carried):
        """The unablated side of the closed forms."""
        raw = take(self.raw, self.positions[tokens]).float()
        mu = None if carried is None else self.readout.directions(carried)
        targets = self.targets[tokens]
        return Base(self.readout, raw, targets, mu, self.frequency, self.log_frequency)


def spans(length, size):
    """Slices of at most ``size`` that cover ``length``."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def unablated(block):
    """Measures of the unablated model at a block's tokens, dict of (T,)."""
    parts = []
    for tokens in spans(len(block.positions), block.sizes()[1]):
        wanted = ("loss", "entropy", "rank", "reciprocal_rank", "top1")
        if block.log_frequency is not None:
            wanted = (*wanted, "kl_frequency")
        found = outcome(block.logits(tokens), block.targets[tokens], wanted, block.log_frequency)
        residual = take(block.residual, block.positions[tokens]).float()
        found["norm_scale"] = block.readout.norm_scale(residual)
        parts.append(found)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def close(block, tally):
    """The closed forms. Neurons go outside, so that u is computed once a chunk of them."""
    size_n, size_t = block.sizes()
    batch, count = block.batch, len(block.positions)
    sampled = draw(batch, block.raw.device)
    fast = tuple(e for e in batch.effects if tilts(block.readout, (e,)))
    slow = tuple(e for e in batch.effects if e not in fast)
    centre = None if slow else torch.softmax(block.logits(slice(0, size_t)), -1).mean(0)
    for neurons in spans(len(block.neurons), size_n):
        weights = block.write.weights(block.neurons[neurons], block.activation)
        directions = block.write.directions(weights)
        fan = block.fan(directions, centre)
        for tokens in spans(count, size_t):
            found, carried = block.coefficients(weights, directions, neurons, tokens)
            base = block.base(tokens, carried)
            parts = {}
            if batch.engine == "series" and fast:
                values, left = series(base, fan, found, fast, batch.tolerance)
                parts.update(zip(fast, values.unbind(-1)))
                tally.recomputed += 0 if slow else left
            elif fast:
                parts.update(zip(fast, exact(base, fan, found, fast).unbind(-1)))
            if slow:
                parts.update(zip(slow, exact(base, fan, found, slow).unbind(-1)))
                tally.recomputed += len(fan.u) * len(base.raw) if batch.engine == "series" else 0
            effects = torch.stack([parts[name] for name in batch.effects], -1)
            tally.add(neurons, tokens, effects)
            mask = sampled(neurons, tokens)
            if mask is not None:
                truth, _ = block.coefficients(weights, directions, neurons, tokens, torch.float64)
                recheck(base, fan, truth, effects, mask, batch.effects, tally)
        del fan  # before the next one is made


def draw(batch, device):
    """Which pairs are recomputed in float64: a function of two slices, giving a mask or None."""
    n, tokens = batch.count(), len(batch.positions)
    generator = torch.Generator().manual_seed(batch.seed)
    sample = min(batch.sample, n * tokens)
    if 4 * sample > n * tokens:
        chosen = torch.randperm(n * tokens, generator=generator)
    else:  # too many pairs to shuffle: draw, and drop what was drawn twice
        chosen = torch.randint(n * tokens, (2 * sample,), generator=generator).unique()
        chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    chosen = chosen[:sample]
    at = torch.div(chosen, tokens, rounding_mode="floor"), chosen % tokens

    def mask(neurons, some):
        inside = (at[0] >= neurons.start) & (at[0] < neurons.stop)
        inside &= (at[1] >= some.start) & (at[1] < some.stop)
        if not inside.any():
            return None
        found = torch.zeros(neurons.stop - neurons.start, some.stop - some.start, dtype=torch.bool)
        found[at[0][inside] - neurons.start, at[1][inside] - some.start] = True
        return found.to(device)

    return mask


def recheck(base, fan, coefficients, effects, mask, names, tally):
    """Recompute the pairs of a mask (n, T) in float64 and note how far the effects were off."""
    for token in mask.any(0).nonzero()[:, 0].tolist():
        some = mask[:, token].nonzero()[:, 0]
        pairs = {name: c.at(some, token) for name, c in coefficients.items()}
        truth = exact_token(base, fan, token, pairs, names, some, torch.float64)
        tally.check(effects[some, token], truth)


def compare_copies(block, clean, tally):
    """The engine ``forward``: the model's own logits of the copies, against the clean rows'."""
    rows, effects, count = block.batch.rows, block.batch.effects, block.batch.count()
    for tokens in block.batch.tokens().to(block.raw.device).split(block.sizes()[1]):
        targets = block.targets[tokens]
        before = block.logits(tokens)
        for j in range(count):
            copy = slice(rows * (j + 1), rows * (j + 2))
            out = torch.empty(len(targets), len(effects))
            for variant in variants_of(effects):
                logits = copied(block, copy, tokens, variant, before)
                wanted = measures_of(effects, variant)
                after = outcome(logits, targets, wanted, block.log_frequency)
                if "norm_scale" in wanted:
                    residual = take(block.residual[copy], block.positions[tokens]).float()
                    after["norm_scale"] = block.readout.norm_scale(residual)
                compared, single = paired(wanted)
                found = {name: change(name, after[name], clean[name][tokens]) for name in single}
                if compared:
                    found.update(tempering(before.double(), logits.double()))
                for column, (name, of) in enumerate(map(split, effects)):
                    if of == variant:
                        out[:, column] = found[name]
            tally.add(slice(j, j + 1), tokens.cpu(), out[None])


def copied(block, copy, tokens, variant, before):
    """Final logits of one variant in one copy of the clean rows, (T, V)."""
    readout, positions = block.readout, block.positions[tokens]
    if variant == "direct":
        clean = take(block.residual[: block.batch.rows], positions).float()
        ablated = readout.centre(take(block.residual[copy], positions).float())
        ablated = readout.gain * ablated / readout.norm_scale(clean)[:, None]
        return readout.finish(readout.unembed(ablated) + readout.offset)
    logits = readout.finish(take(block.raw[copy], positions).float())
    return logits if variant == "total" else put_back(logits, before, block.frequency)
