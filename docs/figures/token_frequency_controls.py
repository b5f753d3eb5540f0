"""Controls of docs/token_frequency_neurons.md, made from counts: COUNTS.npy FOLDER.

Writes counts whose direction v is another one, for `-p counts=`: ``shuffled.npy``, the same counts
shuffled over the vocabulary, and ``reachable_0.npy`` …, where v is what a random direction of the
residual stream adds to the logits. The unembedding can write along v of shuffled counts hardly at
all, but along reachable ones wholly, and mostly along the token frequencies. ``random_cosines.npy``
holds what random directions of the residual stream have in weight space.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from confreg.models import embedded

REACHABLE = 2


def folded() -> torch.Tensor:
    """SmolLM2's unembedding, the norm's weight folded in, centred over the vocabulary: (V, d)."""
    network = AutoModelForCausalLM.from_pretrained(embedded.ensure("smollm2-135m"))
    with torch.no_grad():
        rows = (network.lm_head.weight * network.model.norm.weight).double()
        return rows - rows.mean(0)


def direction(counts: np.ndarray) -> torch.Tensor:
    """v of counts (V,), of norm 1."""
    logarithm = torch.from_numpy(np.log(counts + 1.0))
    logarithm = logarithm - logarithm.mean()
    return logarithm / logarithm.norm()


def counts_of(v: torch.Tensor, spread: float) -> np.ndarray:
    """Counts (V,) along v, of any norm, whose logarithms have the standard deviation ``spread``."""
    logarithm = (v / v.std() * spread).numpy()
    return np.round(1e4 * np.exp(logarithm - logarithm.min())).astype(np.int64)


def random_cosines(
    rows: torch.Tensor, v: torch.Tensor, n: int = 1536, times: int = 30
) -> torch.Tensor:
    """|cos(W_U(γ∘w), v)| of random w: (times, n)."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(times * n, rows.shape[1], generator=generator, dtype=torch.float64)
    norm = ((w @ (rows.T @ rows)) * w).sum(-1).sqrt()
    return (w @ (rows.T @ v) / norm).abs().reshape(times, n)


def main(file: str, folder: str) -> None:
    """Write the controls, and say what random directions of the residual stream have."""
    counts, out = np.load(file), Path(folder)
    shuffled = np.random.default_rng(0).permutation(counts)
    np.save(out / "shuffled.npy", shuffled)
    rows = folded()
    generator = torch.Generator().manual_seed(1)
    for i in range(REACHABLE):
        w = torch.randn(rows.shape[1], generator=generator, dtype=torch.float64)
        made = counts_of(rows @ w, float(np.log(counts + 1).std()))
        np.save(out / f"reachable_{i}.npy", made)
    v, basis = direction(counts), torch.linalg.svd(rows, full_matrices=False)[0]
    for name, each in (("counts", v), ("shuffled", direction(shuffled))):
        within = (basis.T @ each).square()
        print(f"{name}: {within.sum():.3f} of |v|² is within reach of the unembedding, ", end="")
        print(f"{within[0]:.3f} along its largest singular vector")
    found = random_cosines(rows, v).numpy()
    np.save(out / "random_cosines.npy", found)
    median, high = np.quantile(found, (0.5, 0.99))
    print(f"random directions: median {median:.3f}, 99th percentile {high:.3f}")
    mean, least, most = (f(found.max(1)) for f in (np.mean, np.min, np.max))
    print(f"largest of 1,536: {mean:.3f} on average, from {least:.3f} to {most:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
