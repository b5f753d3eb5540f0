"""How output weights lie over the vocabulary: moments of their cosines, and the tokens they move.

c_t = cos(w, Ŵ_t), with Ŵ as in `confreg.effects.weights`. Their variance follows from a d × d
matrix; third and fourth moments do not, so every cosine is made, some neurons and some tokens at a
time, in float32; sums are in float64.
"""

import torch

from .weights import Rows, null_space, written


def vocabulary_statistics(
    site, neurons, like, owned=None, memory=2**29, centre_vocabulary=True, top=10
):
    """Moments over the vocabulary of what some neurons write, by calling modules only.

    Parameters
    ----------
    site : Site
        Of the neurons' layer.
    neurons : Tensor (n,) int64
    like : Tensor (..., d)
        Any activation of the residual stream.
    owned, memory, centre_vocabulary
        As of `confreg.effects.weights.weight_statistics`.
    top : int
        How many tokens to name, at most as many as there are.

    Returns
    -------
    dict of str to Tensor, on the CPU
        ``vocab_mean``, ``logit_var``, ``vocab_skew``, ``vocab_kurtosis`` (n,) float32: mean,
        unbiased variance, E[z³] and E[z⁴] of c (a Gaussian has 0 and 3), NaN where w is zero;
        ``raised``, ``lowered`` (n, top) int64: rows of the unembedding with the largest and the
        smallest c, the most extreme first. Gurnee et al. 2024 (arXiv 2401.12181), section 4.2.
    """
    with torch.no_grad():
        readout = site.readout_of(like)
        rows = Rows(readout, like, owned, memory, centre_vocabulary)
        first = rows.block(rows.blocks[0])
        _, norm = rows.row_statistics(first)
        w = written(readout, site, neurons, like, memory)
        first = unit_columns(rows, first, rows.blocks[0], norm)
        size = max(1, int(0.4 * memory) // (16 * rows.vocabulary))
        parts = [moments(cosines(rows, first, some, norm), top) for some in w.split(size)]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        for name in ("raised", "lowered"):
            if not isinstance(rows.owned, slice):
                found[name] = rows.owned[found[name]]
        return {name: value.cpu() for name, value in found.items()}


def unit_columns(rows, block, columns, norm):
    """Some columns of Ŵ's rows over their norms, but for P, transposed: (k, V) float32.

    The mean row is taken off twice: once the large one, once what float32 rounded of it.
    """
    found = block.float()
    if rows.centring:
        for _ in range(2):
            found = found - found.mean(1, dtype=torch.float64, keepdim=True).float()
    return found * (rows.readout.gain[columns].double()[:, None] / norm).float()


def cosines(rows, first, w, norm):
    """cos(w, Ŵ_t) of some neurons, (n, V) float32; ``first`` are the first block's columns."""
    y = (w / w.norm(dim=-1, keepdim=True)).float()
    found = y[:, rows.blocks[0]] @ first
    for columns in rows.blocks[1:]:
        found += y[:, columns] @ unit_columns(rows, rows.block(columns), columns, norm)
    return found


def moments(c, top):
    """Moments of each row of c (n, V) and its extremes, as `vocabulary_statistics` names them."""
    count = c.shape[-1]
    raised = c.topk(min(top, count)).indices
    lowered = c.topk(min(top, count), largest=False).indices
    mean = averages(c)
    c = c - mean.float()[:, None]
    squares = c.square()
    variance = averages(squares)
    found = {
        "vocab_mean": mean,
        "logit_var": variance * count / (count - 1),
        "vocab_skew": averages(c.mul_(squares)) / variance**1.5,
        "vocab_kurtosis": averages(squares.square_()) / variance.square(),
    }
    found = {name: value.float() for name, value in found.items()}
    return found | {"raised": raised, "lowered": lowered}


def averages(values):
    """Mean of each row, (n,) float64, without a copy of all in float64: of short float32 sums."""
    total = sum(part.sum(-1).double() for part in values.split(1024, -1))
    return total / values.shape[-1]


def null_statistics(
    sites, chosen, like, null_dims=None, owned=None, memory=2**29, centre_vocabulary=True
):
    """Norms and ρ of neurons of several layers, from one decomposition of the unembedding.

    Parameters
    ----------
    sites : list of Site
        One a layer.
    chosen : list of Tensor (n,) int64
        Of each layer, its neurons.
    like, null_dims, owned, memory, centre_vocabulary
        As of `confreg.effects.weights.weight_statistics`.

    Returns
    -------
    dict of str to Tensor, on the CPU
        ``w_out_norm`` and ``null_fraction``, (N,) float32 each, layer after layer;
        ``singular_value`` (d,) float32, descending; ``null_dims`` int.
    """
    with torch.no_grad():
        readout = sites[0].readout_of(like)
        gram, _ = Rows(readout, like, owned, memory, centre_vocabulary).products()
        singular, bottom = null_space(gram, null_dims)
        norms, shares = [], []
        for site, neurons in zip(sites, chosen):
            w = written(readout, site, neurons, like, memory)
            norms.append(w.norm(dim=-1))
            shares.append((w @ bottom).norm(dim=-1) / norms[-1])
        return {
            "w_out_norm": torch.cat(norms).float().cpu(),
            "null_fraction": torch.cat(shares).float().cpu(),
            "singular_value": singular.float().cpu(),
            "null_dims": bottom.shape[-1],
        }
