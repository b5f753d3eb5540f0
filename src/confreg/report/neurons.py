"""The parts of the page about neurons: in weight space, by effect, along the frequencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confreg.report import contexts, figures
from confreg.report.sections import Figure, Options, Section, has, section
from confreg.report.wording import mediator

if TYPE_CHECKING:
    import xarray as xr


def along(ds: xr.Dataset, *names: str) -> bool:
    """Say whether the dataset has all these numbers of neurons."""
    return all(has(ds, name, ("neuron",)) for name in names)


@section(
    needs={"neuron": ("neuron",)},
    otherwise="Scatter of all neurons: the dataset has neither w_out_norm and logit_var nor te "
    "and mediated.",
)
def overview(ds: xr.Dataset, options: Options) -> Section | None:
    """Show all neurons at a glance, in weight space and by effect."""
    shown = []
    if along(ds, "w_out_norm", "logit_var"):
        caption = (
            "A large output weight that moves all logits alike (low LogitVar) is the mark of "
            "an entropy neuron in the weights: to the lower right."
        )
        shown.append(Figure("weights", figures.weights(ds), caption))
    if along(ds, "te", "mediated"):
        frozen, kind = mediator(ds)
        caption = (
            "How much ablating each neuron changes the loss (TE), and the share of it that goes "
            f"through {frozen}. {kind} lie to the upper right."
        )
        shown.append(Figure("mediation", figures.mediation(ds), caption))
    return Section("neurons", "Neurons", _drawn(ds), shown) if shown else None


def _drawn(ds: xr.Dataset) -> str:
    total = ds.sizes["neuron"]
    text = f"Each point is one of {total:,} neurons. Hover to name it, click to go to its detail."
    if total > figures.MAX_POINTS:
        text += (
            f" Drawn are the {figures.MAX_POINTS // 2:,} strongest and an even sample of the "
            f"rest, {figures.MAX_POINTS:,} points in all."
        )
    return text


@section(
    needs={"singular_value": ("component",)},
    otherwise="Spectrum of the unembedding: the dataset has no singular_value.",
)
def null_space(ds: xr.Dataset, options: Options) -> Section:
    """Show the directions that the unembedding barely reads, and who writes into them."""
    null = int(ds.attrs.get("null_dims", 0))
    caption = "Singular values of the unembedding with the final norm's weight folded in."
    if null:
        caption += f" Shaded: the {null} smallest, which make its effective null space."
    shown = [Figure("spectrum", figures.spectrum(ds), caption)]
    if along(ds, "null_fraction", "te"):
        caption = (
            "Share of each neuron's output weight that lies in the null space, against its effect."
        )
        chance = figures.null_chance(ds)
        if chance:
            caption += f" A random direction would have {chance[0]:.2f}"
            many = f", the largest of {ds.sizes['neuron']:,} such"
            caption += f"{many} {chance[1]:.2f}." if len(chance) > 1 else "."
        shown.append(Figure("null-space", figures.null_space(ds), caption))
    return Section("null-space", "What the unembedding does not read", "", shown)


@section(
    needs={
        "above_mean": ("neuron", "token"),
        "effects": ("neuron", "token", "effect"),
        "loss": ("token",),
    },
    shows=("above_mean",),
)
def confidence(ds: xr.Dataset, options: Options) -> Section:
    """Show what neurons do where they are above their mean, against the unablated loss."""
    shown = []
    for neuron in contexts.shown(ds, options)[:4]:
        caption = f"{neuron}, at kept tokens where its activation is above its mean."
        figure = figures.against_loss(ds, neuron)
        shown.append(Figure(f"confidence-{len(shown)}", figure, caption))
    lead = (
        "Change of the loss when the neuron is ablated against the loss before. The colour is "
        "the reciprocal rank of the correct token before: red where it was the likeliest."
    )
    return Section("confidence", "Against the loss before", lead, shown)


@section(needs={"frequency_cosine": ("neuron",), "te": ("neuron",)})
def frequency(ds: xr.Dataset, options: Options) -> Section:
    """Show which neurons write along the token frequencies, and where that moves predictions."""
    caption = (
        "Cosine between what a neuron writes to the logits and the direction of the token "
        "frequencies, against its effect."
    )
    shown = [Figure("frequency", figures.frequency(ds), caption)]
    if has(ds, "effect_mean", ("neuron", "effect")) and "kl_frequency_total" in ds["effect"]:
        caption = (
            "Mean change of D(p_freq ‖ p_model) when the neuron is ablated: above 0 it pulls "
            "the prediction towards the unigrams, below 0 away from them."
        )
        shown.append(Figure("frequency-shift", figures.frequency_shift(ds), caption))
    shows = frozenset[str]()
    if has(ds, "frequency_cosine_all", ("model_layer", "model_index")):
        shows = frozenset(["frequency_cosine_all"])
        caption = "Size of the cosine over the neurons of every layer."
        shown.append(Figure("frequency-layers", figures.frequency_layers(ds), caption))
    lead = str(ds.attrs.get("counts", ""))
    lead = f"Token frequencies: {lead}." if lead else ""
    return Section("frequency", "Token frequency", lead, shown, shows=shows)
