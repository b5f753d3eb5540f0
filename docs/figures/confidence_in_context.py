"""The figure of docs/confidence_in_context.md: STORE OUT NEURON..."""

import itertools
import sys

import matplotlib.pyplot as plt
import numpy as np

import confreg
from confreg.report.styling import BLUE, RED

EDGES = [0, 0.1, 1, 3, 6, 20]


def main(store: str, out: str, *neurons: str) -> None:
    """Draw one column a neuron: change of loss, change of entropy, where it is above its mean."""
    ds = confreg.open(store).load()
    ds = ds.isel(token=ds["keep"].values)
    figure, axes = plt.subplots(
        2, len(neurons), figsize=(3.6 * len(neurons), 6), layout="constrained", squeeze=False
    )
    for column, neuron in zip(axes.T, neurons):
        one = ds.confreg.neuron(neuron)
        one = one.isel(token=one["above_mean"].values)
        loss, effect = one["loss"].values, one["effects"]
        moved = effect.sel(effect="loss_total").values
        drawn = column[0].scatter(
            loss, moved, c=1 / (one["rank"].values + 1), s=9, cmap="viridis", vmin=0, vmax=1
        )
        for low, high in itertools.pairwise(EDGES):
            here = (loss >= low) & (loss < high)
            if here.sum() > 2:
                error = moved[here].std(ddof=1) / np.sqrt(here.sum())
                column[0].errorbar(
                    loss[here].mean(), moved[here].mean(), error, fmt="o", color=RED, ms=5
                )
        column[0].set(xlabel="loss before (nats)", ylabel="Δ loss (nats)")
        column[0].set_title(f"{neuron}: {len(loss)} tokens above its mean", fontsize=10)
        column[1].scatter(
            one["entropy"], effect.sel(effect="entropy_total"), s=9, color=BLUE, alpha=0.7
        )
        column[1].set(xlabel="entropy before (nats)", ylabel="Δ entropy (nats)")
        for axis in column:
            axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    figure.colorbar(drawn, ax=axes[0], label="reciprocal rank before")
    figure.suptitle(
        f"{ds.attrs['model']}, {ds.sizes['token']} kept tokens, {ds.attrs['corpus']}; "
        "mean ablation; red: means of bins, with the standard error over their tokens",
        fontsize=9,
    )
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
