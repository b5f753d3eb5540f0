"""How output weights lie over the vocabulary: moments of their cosines, and the tokens they move.

c_t = cos(w, Ŵ_t), with Ŵ as in `confreg.effects.weights`. Their variance follows from a d × d
matrix; third and fourth moments do not, so every cosine is made, some neurons and some tokens at a
time, in float32; sums are in float64.
"""

import torch

from .weights import Rows, null_space, spectrum, written

TOGETHER = 512  # directions whose cosines with the whole vocabulary are held at once
GROUP = 64  # tokens that stand for each other until the extremes are near


def vocabulary_statistics(
    sites, chosen, like, owned=None, memory=2**29, centre_vocabulary=True, top=10
):
    """Moments over the vocabulary of what neurons of some layers write, by calling modules only.

    Parameters
    ----------
    sites : list of Site
        One a layer.
    chosen : list of Tensor (n,) int64
        Of each layer, its neurons.
    like : Tensor (..., d)
        Any activation of the residual stream.
    owned, memory, centre_vocabulary
        As of `confreg.effects.weights.weight_statistics`.
    top : int
        How many tokens to name, at most as many as there are.

    Returns
    -------
    dict of str to Tensor, on the CPU
        As of `direction_statistics`, layer after layer.
    """
    with torch.no_grad():
        readout = sites[0].readout_of(like)
        parts = (
            written(readout, site, neurons, like, memory) for site, neurons in zip(sites, chosen)
        )
        return direction_statistics(readout, parts, like, owned, memory, centre_vocabulary, top)


def direction_statistics(
    readout, parts, like, owned=None, memory=2**29, centre_vocabulary=True, top=10
):
    """Moments over the vocabulary of directions of the final residual, and the tokens they move.

    Parameters
    ----------
    readout : Readout
    parts : iterable of Tensor (n, d)
        The directions, as the final norm sees them.
    like, owned, memory, centre_vocabulary, top
        As of `vocabulary_statistics`.

    Returns
    -------
    dict of str to Tensor, on the CPU
        ``vocab_mean``, ``logit_var``, ``vocab_skew``, ``vocab_kurtosis`` (n,) float32: mean,
        unbiased variance, E[z³] and E[z⁴] of c (a Gaussian has 0 and 3), NaN where w is zero;
        ``raised``, ``lowered`` (n, top) int64: rows of the unembedding with the largest and the
        smallest c, the most extreme first. Gurnee et al. 2024 (arXiv 2401.12181), section 4.2.
    """
    with torch.no_grad():
        rows = Rows(readout, like, owned, memory, centre_vocabulary)
        first = rows.block(rows.blocks[0])
        _, norm = rows.row_statistics(first)
        first = unit_columns(rows, first, rows.blocks[0], norm)
        size = max(1, int(0.4 * memory) // (12 * rows.vocabulary))
        size = min(size, TOGETHER) if len(rows.blocks) == 1 else size
        found = [
            moments(cosines(rows, first, some, norm), top) for w in parts for some in w.split(size)
        ]
        found = {name: torch.cat([part[name] for part in found]) for name in found[0]}
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
    """Moments of each row of c (n, V), which is changed, and its extremes."""
    count = c.shape[-1]
    raised, lowered = extremes(c, top), extremes(c, top, largest=False)
    mean = averages(c, lambda part: part.sum(-1))
    c -= mean.float()[:, None]
    variance = averages(c, lambda part: torch.linalg.vecdot(part, part))
    third = averages(c, lambda part: torch.linalg.vecdot(part.square(), part))
    fourth = averages(c, lambda part: torch.linalg.vecdot(*[part.square()] * 2))
    found = {
        "vocab_mean": mean,
        "logit_var": variance * count / (count - 1),
        "vocab_skew": third / variance**1.5,
        "vocab_kurtosis": fourth / variance.square(),
    }
    found = {name: value.float() for name, value in found.items()}
    return found | {"raised": raised, "lowered": lowered}


def averages(values, total):
    """Mean over each row of what ``total`` adds up, (n,) float64: of short float32 sums.

    Parts of a row are of a size that a core's cache holds, and none is copied in float64.
    """
    found = sum(total(part).double() for part in values.split(1024, -1))
    return found / values.shape[-1]


def extremes(c, top, largest=True):
    """Places of the ``top`` largest or smallest of each row of c (n, V), (n, top) int64.

    The largest of all are among the members of the groups whose own largest are the largest: so
    few are sorted.
    """
    count = c.shape[-1]
    top, whole = min(top, count), count - count % GROUP
    if whole < 4 * GROUP * top:
        return c.topk(top, largest=largest).indices
    groups = c[:, :whole].unflatten(-1, (-1, GROUP))
    best = groups.amax(-1) if largest else groups.amin(-1)
    best = best.topk(top, largest=largest).indices
    member = (best[..., None] * GROUP + torch.arange(GROUP, device=c.device)).flatten(1)
    rest = torch.arange(whole, count, device=c.device).expand(len(c), -1)
    member = torch.cat([member, rest], -1)
    order = c.gather(-1, member).topk(top, largest=largest).indices
    return member.gather(-1, order)


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
        gram = Rows(readout, like, owned, memory, centre_vocabulary).gram()
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


def space_statistics(site, like, null_dims=None, owned=None, memory=2**29, centre_vocabulary=True):
    """The spectrum of the folded unembedding, parameters as of `null_statistics`.

    Returns
    -------
    dict, on the CPU
        ``singular_value`` (d,) float32, descending; ``right_vector`` (d, d) float32, a row each;
        ``null_dims`` int, how many at the end count as the null space.
    """
    with torch.no_grad():
        readout = site.readout_of(like)
        gram = Rows(readout, like, owned, memory, centre_vocabulary).gram()
        singular, vectors, k = spectrum(gram, null_dims)
        return {
            "singular_value": singular.float().cpu(),
            "right_vector": vectors.float().cpu(),
            "null_dims": k,
        }


def output_weights(sites, chosen, like, memory=2**29):
    """What neurons of some layers add to the residual as the final norm sees it: ``w_out``
    (N, d) float32, on the CPU, layer after layer. Parameters as of `null_statistics`."""
    with torch.no_grad():
        readout = sites[0].readout_of(like)
        parts = [written(readout, s, some, like, memory) for s, some in zip(sites, chosen)]
        return {"w_out": torch.cat(parts).float().cpu()}
