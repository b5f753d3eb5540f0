"""The figure and the numbers of docs/two_models.md: STORE STORE OUT."""

import sys

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text
from scipy.stats import rankdata, spearmanr

import confreg
from confreg.report.styling import CHOSEN, CONTROL

NAMED = 5  # of each model, by what the norm mediates
PLACES = [
    (right, up)
    for reach in (7, 14, 24)
    for right, up in (
        (0, reach), (reach, 0), (-reach, 0), (0, -reach), (reach, reach), (-reach, reach),
        (reach, -reach), (-reach, -reach),
    )
]  # fmt: skip
"""Where a name may stand, in points from what it names, the best first."""


def numbers(ds) -> dict[str, object]:
    """What the table says of a store."""
    # The token after the last of a sequence is in no prediction; every other is in one.
    said = np.array([len(text) for text in np.roll(ds["token_text"].values, -1)])
    predicted = np.isfinite(ds["loss"].values)
    rho, share = ds["null_fraction"].values, ds["mediated"].values
    te, norm = ds["te"].values, ds["w_out_norm"].values
    largest = float(ds["null_fraction_chance_max"])
    relative = te / float(np.mean(ds["loss"].values[predicted]))
    above = rho > largest
    return {
        "text": f"{said[predicted].sum()} characters, {predicted.sum()} tokens",
        "loss": f"{ds['loss'].values[predicted].mean():.3f} nats a token",
        "bits": ds["loss"].values[predicted].sum() / said[predicted].sum() / np.log(2),
        "entropy": float(ds["entropy"].where(ds["keep"]).mean()),
        "kept": int(ds["keep"].sum()),
        "k": int(ds["null_dims"]),
        "singular values": f"{ds['singular_value'].values[[0, len(ds['singular_value']) // 2]]}, "
        f"{ds['singular_value'].values[-4:]}",
        "chance": f"{float(ds['null_fraction_chance']):.3f}, {largest:.3f}",
        "rho quantiles": np.quantile(rho, [0.5, 0.9, 0.99, 1]).round(3),
        "above chance": f"{above.sum()} of {len(rho)}: {above.mean():.1%}",
        "norm quantiles": np.quantile(norm, [0, 0.5, 0.9, 1]).round(2),
        "TE quantiles": np.quantile(te, [0.5, 0.9, 1]),
        "TE of the loss": np.quantile(relative, [0.5, 1]),
        "TE of the ten": np.sort(te)[::-1][:10].sum() / te.sum(),
        "share of the layer": float(1 - ds["de"].sum() / ds["te"].sum()),
        "share above .1, .3, .5": [int((share > at).sum()) for at in (0.1, 0.3, 0.5)],
        "of those above .1 with rho above chance": f"{(above & (share > 0.1)).sum()}",
        "median share, rho above chance and not": [
            float(np.median(share[above])), float(np.median(share[~above]))
        ],
        "ranks of rho and share": spearmanr(rho, share).statistic,
        "ranks of rho and norm": spearmanr(rho, norm).statistic,
        "ranks of LogitVar and share": spearmanr(ds["logit_var"].values, share).statistic,
    }  # fmt: skip


def strongest(ds):
    """The neurons that the norm lets do most, and what is known of each."""
    top = ds.confreg.top("te_mediated", 10)
    for name in ("w_out_norm", "null_fraction", "logit_var", "te", "mediated"):
        ranks = ds[name].copy(data=rankdata(-ds[name].values))
        top[f"{name}_rank"] = ranks.sel(neuron=list(top.index)).values.astype(int)
    entropy = ds["effects"].sel(effect=["entropy_total", "entropy_direct"]).where(ds["keep"])
    means = entropy.mean("token").sel(neuron=list(top.index))
    top["entropy_total"], top["entropy_direct"] = means.transpose("effect", "neuron").values
    top["share_of_the_like"] = [_alike(ds, neuron) for neuron in top.index]
    known = [
        "te", "mediated", "null_fraction", "w_out_norm", "logit_var", "entropy_total",
        "entropy_direct", "share_of_the_like",
    ]  # fmt: skip
    return top[[*known, *(name for name in top if name.endswith("_rank"))]]


def _alike(ds, neuron: str, n: int = 20) -> str:
    """Mediated shares of the ``n`` neurons nearest in norm: lowest, median, highest."""
    norm = np.log(ds["w_out_norm"])
    order = np.argsort(np.abs((norm - norm.sel(neuron=neuron)).values))[1 : n + 1]
    found = np.quantile(ds["mediated"].values[order], [0, 0.5, 1])
    return ", ".join(f"{share:.3f}" for share in found)


def name_points(axis, x, y, names) -> None:
    """Write names beside some points, each where it covers the fewest points and no other name."""
    points = axis.transData.transform(np.column_stack([x.values, y.values]))
    taken = []
    for name in names:
        at = float(x.sel(neuron=name)), float(y.sel(neuron=name))
        tried = []
        for rank, (right, up) in enumerate(PLACES):
            text = axis.annotate(
                name, at, xytext=(right, up), textcoords="offset points", fontsize=8,
                ha=("center", "left", "right")[int(np.sign(right))],
                va=("center", "bottom", "top")[int(np.sign(up))],
                arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.6, "shrinkA": 0},
            )  # fmt: skip
            text.update_positions(axis.figure.canvas.get_renderer())
            box = Text.get_window_extent(text)  # without the line to the point
            covered = int(((points > box.min) & (points < box.max)).all(1).sum())
            outside = not (axis.bbox.contains(*box.min) and axis.bbox.contains(*box.max))
            tried.append(((box.count_overlaps(taken), outside, covered, rank), text, box))
        _, chosen, box = min(tried, key=lambda one: one[0])
        for _, text, _ in tried:
            text.set_visible(text is chosen)
        taken.append(box)


def main(first: str, second: str, out: str) -> None:
    """Print the numbers, and draw weights above and effects below, a column for each model."""
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.5), layout="constrained")
    to_name = []
    for column, store in zip(axes.T, (first, second)):
        ds = confreg.open(store).load()
        print(ds.attrs["model"])
        for name, value in numbers(ds).items():
            print(f"  {name}: {value}")
        print(strongest(ds).to_string())
        named = list(ds.confreg.top("te_mediated", NAMED).index)
        weights, effects = column
        weights.axhline(float(ds["null_fraction_chance_max"]), color="0.6", lw=0.8, ls=":")
        weights.set(
            xlabel="‖w‖ as the final norm sees it", ylabel="ρ", ylim=(-0.05, 1.05),
            title=f"{ds.attrs['model']}, {ds.sizes['neuron']:,} neurons of layer "
            f"{ds['layer'].values[0]}, k = {int(ds['null_dims'])}",
        )  # fmt: skip
        effects.axhline(0, color="0.6", lw=0.8, ls=":")
        lowest = min(-0.05, float(ds["mediated"].min()) - 0.02)
        effects.set(
            xlabel="TE (nats)", ylabel="mediated share", xscale="log", ylim=(lowest, 1.05)
        )  # fmt: skip
        for axis, x, y in (
            (weights, "w_out_norm", "null_fraction"), (effects, "te", "mediated"),
        ):  # fmt: skip
            axis.scatter(ds[x], ds[y], s=5, color=CONTROL, lw=0)
            some = ds.sel(neuron=named)
            axis.scatter(some[x], some[y], s=28, color=CHOSEN)
            to_name.append((axis, ds[x], ds[y], named))
    figure.draw_without_rendering()  # from here on points have their places
    for each in to_name:
        name_points(*each)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
