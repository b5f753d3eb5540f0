"""The closed forms over all edits and tokens of a unit, in chunks that fit a memory budget.

What changes nothing, as neurons of an expert at tokens that are routed elsewhere, has the effects
of changing nothing, which are found once for all.
"""

import torch

from ..geometry import final_norm_change
from ..observed import spans
from ..readout import take
from .algebra import Directions, Unablated
from .pairs import exact, exact_token

MANY = 64
"""At least so many neurons that are there at the same tokens, as of one expert, are a chunk."""


def close(tally, observed, pairs, approximate=False):
    """Edits that write into one direction each. They go outside, so that u is made once a span.

    Parameters
    ----------
    tally : Tally
    observed : Observed
    pairs : callable
        `exact` or `series`: from `Unablated`, `Directions`, coefficients and effects to the
        effects (n, T, E) and how many pairs were recomputed.
    approximate : bool
        Whether ``pairs`` takes only effects that follow from the three expectations: the others
        count as recomputed.
    """
    size_n, size_t = observed.sizes()
    effects = observed.unit.effects
    sampled = draw(observed)
    plain = observed.readout.softcap is None
    fast = [e for e in effects if plain and e.measure.tilted is not None]
    slow = [e for e in effects if e not in fast]
    seen = observed.rows()
    chunks = observed.chunks(size_t)
    centre, still = None, torch.full((len(observed.positions), len(effects)), torch.nan)
    has_still = False  # whether the effects of changing nothing were found
    if chunks and not slow:
        centre = torch.softmax(observed.logits(chunks[0]), -1).mean(0)

    def found(directions, weights, written, moved, tokens):
        """Effects (n, t, E) of some edits, and `Unablated` of the tokens."""
        some, carried = coefficients(observed, weights, written, moved, tokens)
        unablated = make_unablated(observed, tokens, carried)
        parts = {}
        if fast:
            values, left = pairs(unablated, directions, some, fast)
            parts.update(zip(fast, values.unbind(-1)))
            tally.recomputed += 0 if slow else left
        if slow:
            values, _ = exact(unablated, directions, some, slow)
            parts.update(zip(slow, values.unbind(-1)))
            tally.recomputed += values[..., 0].numel() if approximate else 0
        return torch.stack([parts[effect] for effect in effects], -1), unablated

    for edits in chunks_of_edits(observed, size_n, seen):
        some = observed.edits.cut(edits.start, edits.stop)
        *both, unknown = observed.written(some, seen)
        delta, weights = (x[:, 0].float() for x in both)
        written = observed.route.directions(weights)
        directions = make_directions(observed, written, centre)
        same = delta == 0
        moves = (~same).any(0).cpu()
        if same.any() and not has_still:
            for tokens in chunks:
                zero = torch.zeros_like(delta[:1, tokens])
                values, _ = found(directions.cut(1), weights[:1], written[:1], zero, tokens)
                still[tokens] = values[0].cpu()
            has_still = True
        for tokens in moving(chunks, moves, size_t):
            moved = delta[:, tokens]
            values, unablated = found(directions, weights, written, moved, tokens)
            if has_still:
                values = torch.where(same[:, tokens, None], still[tokens].to(values), values)
            tally.add(edits, tokens, values, at(unknown, tokens))
            mask = sampled(edits, tokens)
            if mask is not None:
                truth, _ = coefficients(observed, weights, written, moved, tokens, torch.float64)
                recheck(tally, unablated, directions, truth, values, mask, effects)
        for tokens in moving(chunks, ~moves, size_t):
            values = still[tokens].expand(len(delta), -1, -1)
            tally.add(edits, tokens, values, at(unknown, tokens))
        del directions  # before the next one is made


def at(unknown, tokens):
    """Some tokens of what `Observed.written` says is not known, or None."""
    return None if unknown is None else unknown[:, tokens]


def chunks_of_edits(observed, size, seen):
    """Slices of at most ``size`` edits; of neurons of experts, those of one apart from others."""
    index = getattr(observed.edits, "index", None)
    if index is None or observed.write is None or not observed.write.is_routed:
        return spans(len(observed.edits), size)
    there = (~seen.isnan()).index_select(1, index.to(seen.device))
    others = (there[:, 1:] != there[:, :-1]).any(0).nonzero()[:, 0] + 1
    bounds, last = [0], 0
    for stop in [*others.tolist(), len(index)]:
        if stop - last >= MANY:
            bounds += [last, stop]
        last = stop
    found, start = [], 0
    for stop in sorted({*bounds, len(index)}):
        found += spans(stop, size, start)
        start = stop
    return found


def moving(chunks, moves, size):
    """Those of the tokens in chunks that are true in ``moves`` (T,), ``size`` at a time."""
    every = torch.arange(len(moves))
    if all(moves[tokens].all() for tokens in chunks):
        return chunks
    some = torch.cat([every[tokens] for tokens in chunks])
    return [part for part in some[moves[some]].split(size) if len(part)]


def make_directions(observed, written, centre):
    """`Directions` of some edits. Holds u once, and while it is made some more."""
    readout = observed.readout
    n, vocabulary = len(written), observed.raw.shape[-1]
    if 4 * 2.2 * n * vocabulary < 0.85 * observed.unit.memory:
        u = readout.directions(written)
    else:
        u = written.new_empty(n, vocabulary)
        for some in spans(n, max(1, n // 8)):
            u[some] = readout.directions(written[some])
    log_frequency = observed.log_frequency
    p_frequency = None if log_frequency is None else log_frequency.exp()
    return Directions(u, centre, observed.frequency, p_frequency)


def make_unablated(observed, tokens, carried):
    """`Unablated` of some tokens; ``carried`` is m̂ of a post-norm, (t, d), or None."""
    raw = take(observed.raw, observed.positions[tokens]).float()
    mu = None if carried is None else observed.readout.directions(carried)
    targets = observed.targets[tokens]
    frequency, log_frequency = observed.frequency, observed.log_frequency
    accepted = None if observed.accepted is None else observed.accepted[tokens]
    return Unablated(observed.readout, raw, targets, mu, frequency, log_frequency, accepted)


def coefficients(observed, weights, written, delta, tokens, dtype=torch.float32):
    """How each pathway moves raw logits: dict of (n, t) `Coefficients`, and m̂ or None.

    Parameters
    ----------
    weights, written : Tensor (n, d)
        w, and what it adds to the residual per unit of α.
    delta : Tensor (n, t)
    tokens : slice or Tensor (t,)
    """
    positions = observed.positions[tokens]
    weights, written, delta = (x.to(dtype) for x in (weights, written, delta))
    alpha, kappa, carried = observed.route.change(weights, delta, positions)
    residual = take(observed.residual, positions).to(dtype)
    change = final_norm_change(observed.readout, residual, written, alpha, kappa, carried)
    return change, carried


def draw(observed):
    """Which pairs are recomputed in float64: a function of a slice of the edits and of tokens,
    a slice or their indices in order, which gives a mask (n', t') or None."""
    unit, device = observed.unit, observed.raw.device
    n, wanted = len(unit.edits), unit.tokens.chosen()
    tokens, pairs = len(unit.tokens), n * len(wanted)
    generator = torch.Generator().manual_seed(unit.seed)
    sample = min(unit.sample, pairs)
    if 4 * sample > pairs:
        chosen = torch.randperm(pairs, generator=generator)
    else:  # too many pairs to shuffle: draw, and drop what was drawn twice
        chosen = torch.randint(pairs, (2 * sample,), generator=generator).unique()
        chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    chosen = chosen[:sample]
    count = max(len(wanted), 1)
    at = torch.div(chosen, count, rounding_mode="floor"), wanted[chosen % count]

    def mask(edits, some):
        every = torch.arange(tokens)[some]
        first, last = int(every[0]), int(every[-1])
        inside = (at[0] >= edits.start) & (at[0] < edits.stop)
        inside &= (at[1] >= first) & (at[1] <= last)
        if not inside.any():
            return None
        found = torch.zeros(edits.stop - edits.start, last + 1 - first, dtype=torch.bool)
        found[at[0][inside] - edits.start, at[1][inside] - first] = True
        found = found[:, every - first]
        return found.to(device) if found.any() else None

    return mask


def recheck(tally, unablated, directions, truth, values, mask, effects):
    """Recompute the pairs of a mask (n, t) in float64 and note how far the effects were off."""
    for token in mask.any(0).nonzero()[:, 0].tolist():
        some = mask[:, token].nonzero()[:, 0]
        pairs = {name: c.at(some, token) for name, c in truth.items()}
        right = exact_token(unablated, directions, token, pairs, effects, some, torch.float64)
        tally.check(values[some, token], right)
