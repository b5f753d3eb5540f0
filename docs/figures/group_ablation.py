"""The figure of docs/group_ablation.md: STORE OUT."""

import sys

import matplotlib.pyplot as plt
import numpy as np

import confreg
from confreg.report.styling import CHOSEN, CONTROL

EFFECTS = ("loss_total", "loss_direct", "entropy_total", "entropy_direct")


def main(store: str, out: str) -> None:
    """Draw, for each effect, the chosen set's mean against those of its random controls."""
    ds = confreg.open(store).load()
    figure, axes = plt.subplots(1, len(EFFECTS), figsize=(13, 3.6), layout="constrained")
    rng = np.random.default_rng(0)
    deviations = np.unique(ds["set_deviation"].values)
    for axis, effect in zip(axes, EFFECTS):
        values = ds["effect_mean"].sel(effect=effect).values
        for kind, colour, size in (("random", CONTROL, 8), ("chosen", CHOSEN, 40)):
            some = ds["set_kind"].values == kind
            at = np.searchsorted(deviations, ds["set_deviation"].values[some])
            spread = 0 if kind == "chosen" else rng.uniform(-0.2, 0.2, some.sum())
            axis.scatter(at + spread, values[some], s=size, color=colour, label=kind)
        names = ["mean" if k == 0 else f"mean {k:+g}σ" for k in deviations]
        axis.set_xticks(range(len(names)), names)
        axis.axhline(0, color="0.8", lw=0.8, zorder=0)
        axis.set(title=effect, ylabel="mean change (nats)")
    axes[0].legend(frameon=False, fontsize=8)
    chosen = ds["set_kind"].values == "chosen"
    figure.suptitle(
        f"{ds.attrs['model']}, {ds['set_size'].values[0]} neurons of layer {ds['layer'].values[0]} "
        f"against {int((~chosen).sum() / chosen.sum())} random sets, "
        f"{int(ds['keep'].sum())} kept tokens, {ds.attrs['corpus']}",
        fontsize=9,
    )
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
