"""The figure of docs/bos_ablation.md: STORE OUT NEURON..."""

import sys

import matplotlib.pyplot as plt
import numpy as np

import confreg
from confreg.report.styling import CHOSEN
from confreg.report.styling import CONTROL as RANDOM

EFFECTS = {"loss_total": "nats", "entropy_total": "nats", "norm_scale_total": ""}


def main(store: str, out: str, *entropy_neurons: str) -> None:
    """Draw scores of all heads, what the chosen do against random ones, and to which neurons."""
    ds = confreg.open(store).load()
    figure, axes = plt.subplot_mosaic(
        [["scores", *EFFECTS], ["neurons"] * 4], figsize=(13, 7), layout="constrained"
    )
    chosen = ds["set_kind"].values == "chosen"
    draw_scores(axes["scores"], ds, ds["set_heads"].values[chosen])
    for effect, unit in EFFECTS.items():
        values, control = ds["effect_mean"].sel(effect=effect).values, ds["set_control"].values
        scatter(axes[effect], control, values, chosen)
        names = [str(name).replace("+", "\n+ ") for name in ds["set_heads"].values[chosen]]
        axes[effect].set_xticks(range(len(names)), names)
        name = effect.removesuffix("_total").replace("_", " ")
        axes[effect].set(title=f"Δ {name}", ylabel=f"mean change{f' ({unit})' if unit else ''}")
    draw_neurons(axes["neurons"], ds, entropy_neurons)
    axes["loss_total"].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{ds.attrs['model']}: heads attend to the first token only; {int(ds['keep'].sum())} kept "
        f"tokens at the repeat, {ds.attrs['corpus']}",
        fontsize=9,
    )
    figure.savefig(out, dpi=90)


def scatter(axis, at, values, chosen):
    """Random sets side by side, grey; chosen ones red."""
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(values)) * ~chosen
    for kind, rows, colour, size in (
        ("random heads, same layers", ~chosen, RANDOM, 9),
        ("chosen heads", chosen, CHOSEN, 45),
    ):
        axis.scatter((at + spread)[rows], values[rows], s=size, color=colour, label=kind)
    axis.axhline(0, color="0.8", lw=0.8, zorder=0)


def draw_scores(axis, ds, names):
    """Every head's prefix-matching score by layer."""
    score = ds["prefix_score"].values
    layer = np.repeat(np.arange(len(score)), score.shape[1])
    axis.scatter(layer, score.ravel(), s=9, color=RANDOM)
    for number, name in enumerate(sorted({h for joined in names for h in joined.split("+")})):
        at, side = tuple(map(int, name.split("."))), ("left", "right")[number % 2]
        axis.scatter(at[0], score[at], s=45, color=CHOSEN)
        offset = (6 if side == "left" else -6, -3)
        axis.annotate(
            name, (at[0], score[at]), offset, textcoords="offset points", ha=side, fontsize=8
        )
    axis.axhline(0.7, color="0.6", lw=0.8, ls=":")
    axis.set(title="prefix-matching score", xlabel="layer", ylim=(-0.03, 1.03))


def draw_neurons(axis, ds, entropy_neurons):
    """Change of each watched neuron when all chosen heads are ablated, in σ of its activation."""
    sigma = ds["activation"].std("token")
    change = (ds["activation_change_mean"] / sigma).values
    own = int(np.argmax(ds["set_size"].values * (ds["set_kind"].values == "chosen")))
    same = ds["set_control"].values == ds["set_control"].values[own]
    controls = np.flatnonzero(same & (ds["set_kind"].values == "random"))
    names = [str(name) for name in ds["neuron"].values]
    order = [names.index(name) for name in entropy_neurons]
    order += [row for row in range(len(names)) if row not in order]
    rng = np.random.default_rng(0)
    for place, row in enumerate(order):
        spread = rng.uniform(-0.25, 0.25, len(controls))
        axis.scatter(place + spread, change[controls, row], s=6, color=RANDOM)
        axis.scatter(place, change[own, row], s=45, color=CHOSEN)
    ticks = [names[row] for row in order]
    axis.set_xticks(range(len(order)), ticks, rotation=60, ha="right", fontsize=8)
    axis.axvline(len(entropy_neurons) - 0.5, color="0.6", lw=0.8, ls=":")
    axis.axhline(0, color="0.8", lw=0.8, zorder=0)
    axis.set(
        title=f"{ds['set_heads'].values[own]} together: entropy neurons (left of the line) and "
        f"random neurons of layer {ds['layer'].values[0]}",
        ylabel="mean Δ activation (σ)",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
