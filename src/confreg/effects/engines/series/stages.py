"""The stages of the series, over all edits and tokens of a chunk."""

import torch

from ...compare import by_pathway
from ..algebra import frequency_kept
from ..pairs import exact_token
from ..parallel import hand_on
from .bands import add_bands, bands_of
from .higher import HigherMoments
from .moments import JointMoments, TokenMoments
from .orders import VariableMoments, choose
from .pathway import Pathway
from .tuning import GATHERED


class Stages:
    """`series` as a callable that knows its tolerance, in nats."""

    def __init__(self, tolerance):
        self.tolerance = tolerance

    def __call__(self, unablated, directions, coefficients, effects):
        """Effects of every edit on every token of a chunk, see `series`."""
        return series(unablated, directions, coefficients, effects, self.tolerance)


def series(unablated, directions, coefficients, effects, tolerance):
    """Effects of every edit on every token of a chunk.

    Parameters
    ----------
    unablated : Unablated
    directions : Directions
    coefficients : dict of str to Coefficients, each (n, T)
        By pathway: ``"total"`` and ``"direct"``.
    effects : sequence of Effect
        On measures that are `Measure.tilted`; the model has no softcap.
    tolerance : float
        Nats.

    Returns
    -------
    effects : Tensor (n, T, E) float32
    recomputed : int
        Pairs that were left to the exact sums.
    """
    own = TokenMoments(unablated)
    joint = JointMoments(own, directions)
    pathways = []
    for name, columns in by_pathway(effects).items():
        if name == "frequency_direct":
            total, scale = coefficients["total"], unablated.readout.scale
            kept = frequency_kept(total, scale, directions.along[:, None], own.along)
            coefficients = {**coefficients, name: kept}
        tilted = [effects[column].measure.tilted for column in columns]
        pathways.append(Pathway(own, joint, directions, coefficients[name], tilted, columns))
    for one in pathways:
        one.judge(tolerance)
    raised = raise_orders(pathways, own, joint, directions, tolerance)
    suspects = torch.stack([one.suspects for one in pathways]).any(0)

    def banded(token):
        rows = suspects[:, token].nonzero()[:, 0]
        parts, rows = [rows[raised[rows]]], rows[~raised[rows]]
        if len(rows):
            bands = bands_of(own, token)
            size = max(1, GATHERED // max(1, *(len(band.entries) for band in bands)))
            parts += [
                add_bands(pathways, bands, directions, token, some, tolerance)
                for some in rows.split(size)
            ]
        return torch.cat(parts)

    def recompute(token, rows):
        if len(rows):
            pairs = {name: c.at(rows, token) for name, c in coefficients.items()}
            found = exact_token(unablated, directions, token, pairs, effects, rows)
            for one in pathways:
                one.values[rows, token] = found[:, one.columns]
        return len(rows)

    recomputed = sum(hand_on(banded, recompute, len(own.log_p), directions.u.device))
    out = directions.u.new_empty(*suspects.shape, len(effects))
    for one in pathways:
        out[..., one.columns] = one.values
    return out, recomputed


def raise_orders(pathways, own, joint, directions, tolerance):
    """Take the edits for which it pays to higher orders; which those are, (n,) bool."""
    suspects = torch.stack([one.suspects for one in pathways]).any(0)
    raised = torch.zeros_like(suspects[:, 0])
    # What else a pathway adds, its powers would have to meet u's too.
    if all(list(one.coefficients) == ["logits"] for one in pathways):
        variable = VariableMoments(own)
        rows, orders = choose(own, joint, directions, pathways, suspects, tolerance, variable)
        if len(rows):
            higher = HigherMoments(own, joint, directions, rows, orders, variable)
            for one in pathways:
                one.raise_order(higher, tolerance)
            raised[rows] = True
    return raised
