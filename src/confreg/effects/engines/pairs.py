"""The closed form evaluated pair by pair: O(V) an edit and token, no unembedding."""

import torch

from ..compare import by_pathway, changes, measured
from ..frequency import put_back
from ..prediction import Prediction
from .algebra import edited, frequency_kept
from .parallel import hand_on
from .sums import ExactSums
from .tuning import CACHED, SAFE


def exact(unablated, directions, coefficients, effects):
    """Effects of every edit on every token of a chunk.

    Parameters
    ----------
    unablated : Unablated
    directions : Directions
    coefficients : dict of str to Coefficients, each (n, T)
        By pathway: ``"total"`` and ``"direct"``.
    effects : sequence of Effect

    Returns
    -------
    effects : Tensor (n, T, E) float32
    recomputed : int
        0: see `confreg.effects.engines.series.series`.
    """
    n, tokens = len(directions.u), len(unablated.raw)
    out = directions.u.new_empty(n, tokens, len(effects))
    rows = torch.arange(n, device=out.device)

    def fill(token, _):
        pairs = {name: c.at(rows, token) for name, c in coefficients.items()}
        out[:, token] = exact_token(unablated, directions, token, pairs, effects, rows)

    hand_on(lambda token: None, fill, tokens, out.device)
    return out, 0


def exact_token(unablated, directions, token, coefficients, effects, rows, dtype=torch.float32):
    """Effects of some edits on one token.

    Parameters
    ----------
    unablated, directions, effects
        As of `exact`.
    token : int
    coefficients : dict of str to Coefficients, each (m,)
    rows : Tensor (m,) int64
        The edits, as rows of the directions.
    dtype : torch.dtype
        In which to compute.

    Returns
    -------
    Tensor (m, E) of ``dtype``
    """
    columns = by_pathway(effects)
    out = torch.empty(len(rows), len(effects), dtype=dtype, device=directions.u.device)
    found, known = {}, None
    if unablated.tilts(effects):
        found = through_sums(unablated, directions, token, coefficients, columns, rows, dtype)
    for pathway, places in columns.items():
        own = [effects[column] for column in places]
        if pathway in found:
            values = [found[pathway][effect.measure.tilted] for effect in own]
        else:
            target, given = unablated.targets[token : token + 1], unablated.given(token)
            before = Prediction(unablated.logits(token, dtype), target, given)
            known = known or measured(before, [effect.measure for effect in effects])
            pairs = coefficients["total" if pathway == "frequency_direct" else pathway]
            values = through_logits(unablated, directions, rows, token, pairs, own, before, known)
        for column, value in zip(places, values):
            out[:, column] = value.to(dtype)
    return out


def through_sums(unablated, directions, token, coefficients, pathways, rows, dtype):
    """Changes from the exact sums: dict by pathway, see `ExactSums.changes`.

    Pathways by which an edit changes logits so much that the sums lose digits are left out.
    """
    sums = ExactSums(unablated, token, dtype)
    moved = {
        pathway: frequency_back(unablated, directions, token, coefficients, rows, dtype)
        if pathway == "frequency_direct"
        else coefficients[pathway]
        for pathway in pathways
    }
    low, high = directions.low[rows], directions.high[rows]
    moved = {k: v for k, v in moved.items() if (sums.reach(low, high, v) < SAFE).all()}
    if not moved:
        return {}
    return dict(zip(moved, sums.changes(directions, rows, list(moved.values()))))


def frequency_back(unablated, directions, token, coefficients, rows, dtype):
    """`frequency_kept` of some edits at one token, of their coefficients."""
    v = unablated.frequency.to(dtype)
    same = dtype == directions.along.dtype
    along = directions.along[rows] if same else directions.u[rows].to(dtype) @ v
    variables_along = {n: q @ v for n, q in unablated.variables(token, dtype).items()}
    return frequency_kept(coefficients["total"], unablated.readout.scale, along, variables_along)


def through_logits(unablated, directions, rows, token, coefficients, effects, before, known):
    """Effects of one pathway from the edited logits themselves: any measure. List of (m,)."""
    parts = []
    size = max(1, CACHED // directions.u.shape[-1])
    back = unablated.frequency if effects[0].pathway == "frequency_direct" else None
    for start in range(0, len(rows), size):
        some = slice(start, start + size)

        def logits(dtype, some=some):
            u = directions.u[rows[some]].to(dtype)
            found = edited(unablated, u, token, coefficients.at(some).to(dtype))
            if back is None:
                return found
            return put_back(found, unablated.logits(token, dtype)[0], back.to(dtype))

        def pair(logits=logits):
            # Differences of small numbers: in float64 from the closed form on.
            return unablated.logits(token, torch.float64), logits(torch.float64)

        own = logits(before.logits.dtype)
        targets = unablated.targets[token].expand(len(own))
        after = Prediction(own, targets, before.given)
        parts.append(changes(before, after, effects, known, pair))
    return [torch.cat(same) for same in zip(*parts)]
