"""Controls of docs/token_frequency_neurons.md, made from counts: COUNTS.npy FOLDER.

Writes counts whose direction v is another one, for `-p counts=`: ``shuffled.npy``, the same counts
shuffled over the vocabulary, and ``reachable_0.npy`` …, where v is what a random direction of the
residual stream adds to the logits. Shuffled counts lie almost wholly outside of what the unembedding
can write; reachable ones lie within it, as the token frequencies mostly do.
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
    """Counts (V,) whose direction is v and whose logarithms have the standard deviation given."""
    logarithm = v / v.std() * spread
    return np.round(np.exp((logarithm - logarithm.min()).numpy() + np.log(1e4))).astype(np.int64)


def random_cosines(rows: torch.Tensor, v: torch.Tensor, n: int = 1536, times: int = 30):
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
        v = rows @ w
        np.save(
            out / f"reachable_{i}.npy", counts_of(v / v.norm(), float(np.log(counts + 1).std()))
        )
    v, basis = direction(counts), torch.linalg.svd(rows, full_matrices=False)[0]
    for name, each in (("counts", v), ("shuffled", direction(shuffled))):
        within = (basis.T @ each).square()
        print(f"{name}: {within.sum():.3f} of |v|² is within reach of the unembedding, ", end="")
        print(f"{within[0]:.3f} along its largest singular vector")
    found = random_cosines(rows, v)
    np.save(out / "random_cosines.npy", found.numpy())
    quantiles = np.quantile(found, (0.5, 0.99))
    print(f"random directions: median {quantiles[0]:.3f}, 99th percentile {quantiles[1]:.3f}")
    largest = found.amax(1)
    print(f"largest of 1,536: {largest.mean():.3f}, from {largest.min():.3f} to {largest.max():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
