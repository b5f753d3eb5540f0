"""The figure of docs/induction.md: STORE OUT."""

import sys

import matplotlib.pyplot as plt
import numpy as np

import confreg
from confreg.report import profiles
from confreg.report.styling import CONTROL, OTHERWISE, SECOND

BASELINE = {"entropy": "entropy (nats)", "loss": "loss (nats)", "norm_scale": "norm scale"}
EFFECTS = {"entropy_total": "Δ entropy (nats)", "loss_total": "Δ loss (nats)"}


def main(store: str, out: str) -> None:
    """Draw the model along both occurrences, and the joint set's effects along the second."""
    ds = confreg.open(store).load()
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.6), layout="constrained")
    for axis, (name, title) in zip(axes[0], BASELINE.items()):
        for kind, colour, where in profiles.occurrences(ds):
            found = profiles.profile(ds, ds[name].values, where)
            axis.plot(found.at, found.mean, color=colour, label=kind, lw=1.6)
            axis.fill_between(
                found.at,
                found.mean - found.sd,
                found.mean + found.sd,
                color=colour,
                alpha=0.15,
                lw=0,
            )
        axis.set(xlabel="position in the occurrence", ylabel=title)
    axes[0, 0].legend(frameon=False, fontsize=8, title="mean ± sd over tokens", title_fontsize=8)
    shifts(ds, axes[1, 0])
    for axis, (name, title) in zip(axes[1, 1:], EFFECTS.items()):
        along(ds, name, axis)
        axis.set(xlabel="position in the second occurrence", ylabel=title)
    low, high = axes[1, 1].get_ylim()
    axes[1, 1].set_ylim(low - 0.5 * (high - low), high)  # room for the legend
    axes[1, 1].legend(frameon=False, fontsize=8, loc="lower right")
    count = len(np.unique(ds["sequence"].values))
    figure.suptitle(
        f"{ds.attrs['model']}, layer {ds['layer'].values[0]}; {count} sequences, "
        f"{int(ds['keep'].sum())} kept tokens; {ds.attrs['corpus']}; replaced by the mean over the "
        "first occurrence",
        fontsize=9,
    )
    figure.savefig(out, dpi=90)


def shifts(ds, axis):
    """How far the repeat moves chosen and random neurons."""
    relative, chosen = profiles.shifts(ds)[2], profiles.chosen_neurons(ds)
    rng = np.random.default_rng(0)
    for place, (rows, colour, size) in enumerate(((~chosen, CONTROL, 9), (chosen, SECOND, 36))):
        at = place + rng.uniform(-0.25, 0.25, rows.sum())
        axis.scatter(at, relative[rows], color=colour, s=size)
    axis.axhline(0, color="0.8", lw=0.8, zorder=0)
    axis.set_xticks([0, 1], [f"{(~chosen).sum()} random neurons", f"{chosen.sum()} chosen"])
    axis.set(ylabel="mean change at the repeat (σ)")


def along(ds, effect, axis):
    """The joint set's effect, plain and clipped, within the range of its random controls."""
    cube = ds["effects"].sel(effect=effect)
    for (way, own, controls), colour in zip(profiles.ways(ds), (SECOND, OTHERWISE)):
        for kind, _, where in profiles.second_occurrences(ds):
            random = profiles.profile(ds, cube.isel(set=controls).values, where).mean
            found = profiles.profile(ds, cube.isel(set=own).values, where)
            dashed = "--" if "otherwise" in kind else "-"
            name = f"{way}{kind.removeprefix('second')}"
            axis.plot(found.at, found.mean, dashed, color=colour, lw=1.6, label=name)
            if way == "plain" and dashed == "-":
                axis.fill_between(
                    found.at, random.min(0), random.max(0), color=CONTROL, alpha=0.35,
                    label=f"{len(controls)} random sets, {name}", lw=0, zorder=0,
                )  # fmt: skip
    axis.axhline(0, color="0.8", lw=0.8, zorder=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
