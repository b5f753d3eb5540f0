"""The token-frequency direction: where the unigram distribution lies among the logits."""

import torch

from .weights import Rows, weights_in_chunks


def log_frequencies(counts):
    """log p_freq with p_freq = (count + 1) / Σ, (V,) float32.

    Parameters
    ----------
    counts : Tensor (bytes, V) uint8
        As of `confreg.effects.batch.Batch`. Rows that no token owns take no part, and get -inf.
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


def frequency_cosines(readout, writes, like, counts, vocab_real, memory=2**29):
    """cos(W_U(γ∘P w), v) of every neuron of some layers, by calling modules only.

    Parameters
    ----------
    readout : Readout
    writes : list of Write
        One a layer, L of them, each of n neurons.
    like : Tensor (..., d)
        Any activation of the residual stream.
    counts : Tensor (bytes, V) uint8
        As of `log_frequencies`.
    vocab_real : int
        Rows of the unembedding that tokens own; padding rows after them are left out.
    memory : int
        Bytes for parts of the unembedding.

    Returns
    -------
    Tensor (L, n) float32, on the CPU
        The norm of W_U(γ∘P w) is over the rows that tokens own; no (n, V) array is made.
    """
    with torch.no_grad():
        frequency = frequency_direction(log_frequencies(counts)).to(like.device).double()
        rows = Rows(readout, like, vocab_real, memory)
        gram, pulled = products(rows, frequency[:vocab_real])
        found = []
        for write in writes:
            every = torch.arange(write.width, device=like.device)
            w = readout.centre(weights_in_chunks(write, every, like, memory).double())
            norm = ((w @ gram) * w).sum(-1).clamp_min(1e-300).sqrt()
            found.append((w @ pulled / norm).float().cpu())
        return torch.stack(found)


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
