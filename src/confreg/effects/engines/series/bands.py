"""Stage 2: a token's likeliest vocabulary entries, summed exactly."""

import torch

from ..tuning import LOG2E
from .tuning import BANDS


class Band:
    """Vocabulary entries of one token that stage 2 sums exactly."""

    def __init__(self, own, token, entries, low):
        self.entries = entries
        self.p, self.py, self.variables = own.at(token, entries)
        # No entry that is left is likelier than this.
        self.peak = own.entropy[token, 0] + low

    def add(self, sums, u, gain, mean, coefficients):
        """`Expectations` (m,) of some edits with the band summed exactly; ``u`` (m, K)."""
        f = (u - mean[:, None]).mul_(gain[:, None])
        for name, c in coefficients.items():
            if c.any():
                f.addcmul_(c[:, None], self.variables[name])
        square = f.square()
        f2, y2 = square @ self.p, square @ self.py
        beyond = torch.mul(f, LOG2E, out=square).exp2_().sub_(1).sub_(f)  # first order
        a = beyond @ self.p - f2 / 2
        b = beyond @ self.py - y2 / 2
        c = beyond.mul_(f) @ self.p
        return sums.summed(a, b, c, f2, y2, self.peak)


def bands_of(own, token):
    """The bands of one token, the likeliest entries first."""
    log_p, bands = own.log_p[token], []
    left = (log_p > BANDS[-1]).nonzero()[:, 0]
    for low in BANDS:
        inside = log_p[left] > low
        bands.append(Band(own, token, left[inside], low))
        left = left[~inside]
    return bands


def add_bands(pathways, bands, directions, token, rows, tolerance):
    """Stage 2 for one token and some edits; those that it leaves to stage 3."""
    sums = [one.sums.at(rows, token) for one in pathways]
    for band in bands:
        # All pathways push by the same u, and fetching it costs more than what follows.
        pushed = directions.at(rows, band.entries)
        sums = [one.improve(s, band, pushed, rows, token) for one, s in zip(pathways, sums)]
        bounds = torch.stack([one.bound(s) for one, s in zip(pathways, sums)])
        left = (~(bounds <= tolerance).all(0)).nonzero()[:, 0]
        rows, sums = rows[left], [s.only(left) for s in sums]
    return rows
