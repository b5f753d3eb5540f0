"""The token-frequency direction: where the unigram distribution lies among the logits."""

import torch

from .weights import Rows, weights_in_chunks


def log_frequencies(counts):
    """log p_freq with p_freq = (count + 1) / Σ, (V,) float32.

    Parameters
    ----------
    counts : Tensor (bytes, V) uint8
        As of `confreg.effects.unit.Unit`. Rows that no token owns take no part, and get -inf.
    """
    weights = 256.0 ** torch.arange(len(counts), dtype=torch.float64)
    smoothed = weights @ counts.double().cpu()
    return (smoothed / smoothed.sum()).log().float()


def frequency_direction(log_frequency):
    """v = log p_freq − mean(log p_freq) over the real vocabulary, of norm 1 and 0 elsewhere.

    Stolfo et al. 2024 (arXiv 2406.16254), section 4.
    """
    real = log_frequency > -torch.inf
    chosen = log_frequency[real].double()
    chosen = chosen - chosen.mean()
    out = torch.zeros(len(log_frequency), dtype=torch.float64, device=log_frequency.device)
    out[real] = chosen / chosen.norm()
    return out.float()


def put_back(after, before, direction):
    """ℓ'' = ℓ' + ((ℓ − ℓ')·v) v: the component along v as if nothing had been edited."""
    return after + ((before - after) @ direction)[:, None] * direction


def frequency_cosines(sites, like, counts, memory=2**29, centre_vocabulary=True):
    """cos(C W_U(γ∘P w), v) of every neuron of some layers, by calling modules only.

    That is Pearson's r, over the vocabulary, between what the neuron adds to the logits and the
    tokens' log frequencies.

    Parameters
    ----------
    sites : list of Site
        One a layer, L of them, of n neurons at most.
    like : Tensor (..., d)
        Any activation of the residual stream.
    counts : Tensor (bytes, V) uint8
        As of `log_frequencies`: its zeros are rows of the unembedding that no token owns.
    memory : int
        Bytes for parts of the unembedding.
    centre_vocabulary : bool
        Whether what the neuron adds to all logits alike is taken off first (C), see
        `confreg.effects.weights`.

    Returns
    -------
    Tensor (L, n) float32, on the CPU
        NaN beyond a layer's own neurons. Norms are over the rows that tokens own; no (n, V) array
        is made.
    """
    with torch.no_grad():
        log_frequency = log_frequencies(counts).to(like.device)
        readout = sites[0].readout_of(like)
        rows = Rows(readout, like, log_frequency > -torch.inf, memory, centre_vocabulary)
        frequency = frequency_direction(log_frequency)[rows.owned].double()
        gram, pulled = products(rows, frequency)
        found = []
        for site in sites:
            write = site.write_of(like)
            every = torch.arange(write.width, device=like.device)
            w = readout.centre(weights_in_chunks(write, every, like, memory).double())
            norm = ((w @ gram) * w).sum(-1).clamp_min(1e-300).sqrt()
            found.append((w @ pulled / norm).float().cpu())
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=torch.nan)


def products(rows, frequency):
    """Ŵᵀ Ŵ (d, d) and Ŵᵀ v (d,), float64, of the folded unembedding Ŵ."""
    mean, _ = rows.row_statistics(rows.block(rows.blocks[0]))
    gram, _ = rows.products()
    pulled = torch.zeros_like(gram[0])
    for columns in rows.blocks:
        block = rows.block(columns)
        for some in rows.spans():
            pulled[columns] += rows.folded(block, columns, some, mean) @ frequency[some]
    return gram, pulled
