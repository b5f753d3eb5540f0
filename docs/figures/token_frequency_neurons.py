"""The figure of docs/token_frequency_neurons.md: FOLDER OUT.

FOLDER holds the page's stores, and what token_frequency_controls.py wrote.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import confreg
from confreg.report.styling import BLUE, CONTROL, RED

CONTROLS = {"shuffled": ("shuffled counts", "x"), "reachable_0": ("random directions", "o")}


def main(folder: str, out: str) -> None:
    """Draw three panels."""
    runs = Path(folder)
    ds = confreg.open(runs / "frequency.zarr").load()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")

    for path in [*sorted(runs.glob("reachable_*.zarr")), runs / "shuffled.zarr"]:
        control = confreg.open(path).load()
        label, marker = CONTROLS.get(path.stem, (None, "o"))
        left.scatter(
            control["te"], control["mediated"], s=14, color=CONTROL, label=label, marker=marker
        )
    left.scatter(ds["te"], ds["mediated"], s=16, color=RED, label="counts")
    for label, te, share in zip(ds["neuron"].values, ds["te"].values, ds["mediated"].values):
        if share > 0.17:
            left.annotate(
                label, (te, share), (-5, 3), textcoords="offset points", fontsize=8, ha="right"
            )
    left.set(xscale="log", xlabel="TE: mean |Δ loss| (nats)", ylabel="mediated share 1 − DE/TE")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    left.set_title("what the token-frequency direction mediates", fontsize=10)

    every = np.abs(ds["frequency_cosine_all"].values)
    layers = ds["model_layer"].values
    random = np.load(runs / "random_cosines.npy")
    largest = random.max(1)
    middle.axhspan(largest.min(), largest.max(), color=CONTROL, alpha=0.35, lw=0)
    for level in np.quantile(random, (0.5, 0.99)):
        middle.axhline(level, color=CONTROL, lw=1)
    for quantile, style in ((0.5, ":"), (0.99, "--"), (1.0, "-")):
        name = {0.5: "median", 0.99: "99th percentile", 1.0: "largest"}[quantile]
        middle.plot(layers, np.quantile(every, quantile, axis=1), style, color=BLUE, label=name)
    middle.set(xlabel="layer", ylabel="|cos| of what it writes and v", ylim=(0, 0.62))
    middle.text(
        0.5, 0.27, "grey: random directions, the largest of 1,536\n"
        "(30 draws), 99th percentile, median",
        color="0.4", fontsize=8, va="center",
    )  # fmt: skip
    middle.legend(frameon=False, fontsize=8, loc="upper left", ncols=3)
    middle.set_title("neurons of every layer that write along it", fontsize=10)

    kept = ds.isel(token=ds["keep"].values)
    top = kept["mediated"].argmax("neuron").item()
    effect = kept["effects"].isel(neuron=top)
    right.scatter(
        effect.sel(effect="entropy_total"), effect.sel(effect="kl_frequency_total"),
        s=8, color=RED, alpha=0.6,
    )  # fmt: skip
    right.axhline(0, color="0.8", zorder=0)
    right.axvline(0, color="0.8", zorder=0)
    right.set(xlabel="Δ entropy (nats)", ylabel="Δ D(p_freq ‖ p_model) (nats)")
    right.set_title(f"ablating {kept['neuron'].values[top]}: each token", fontsize=10)

    kept_tokens = int(ds["keep"].sum())
    figure.suptitle(
        f"{ds.attrs['model']}, last layer, {ds.sizes['neuron']} neurons, {kept_tokens} kept tokens "
        f"({ds.attrs['corpus']}); counts of {ds.attrs['counts_tokens']:,} tokens",
        fontsize=9,
    )  # fmt: skip
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
