"""Correlated neurons: which neurons of one model fire where those of another do?

Over all kept tokens, with neuron a of one model and neuron b of another that has the same tokens,

    r_ab = (E[ab] − E[a] E[b]) / (σ_a σ_b)

Sums of products are added up over the text; no activation is kept.

    confreg run examples/correlated_neurons.py -p other=some/other-model --out runs/correlated.zarr

After Gurnee et al. (2024), Universal Neurons in GPT2 Language Models, arXiv 2401.12181.
"""

import nnsight
import numpy as np
import torch

from confreg import Axis, Derivation, Network, Step, Variable, recipe
from confreg.effects import pick

MOMENT = Axis.of("moment", ["first", "second"], "power of the activation")
ADDED = {"dtype": "float64", "added_over": ("token",)}


@recipe()
def correlated_neurons(
    study, *, other: Network = "smollm2-135m", layer: int = -1, other_layer: int = -1
):
    """Lay out a layer of each model and the text; the units are spans of neurons and of tokens."""
    tokens, mine = study.tokens(), study.neurons(layer)
    theirs = study.neurons(other_layer, of=other, name="partner")

    def unit(spans, stored):
        """A span of the text, one of my neurons, which are of one layer, and all of theirs."""
        start, stop = spans.bounds["neuron"]
        return (
            tokens.entries(*spans.bounds["token"]),
            (int(mine.layer[start]), mine.entries(start, stop).index),
            (int(theirs.layer[0]), theirs.entries(0, len(theirs)).index),
        )

    sums = Step(
        moments,
        over=(mine, tokens),
        along=(theirs, MOMENT),
        models=(study.model, other),
        unit=unit,
        gives=(
            Variable("product", ("neuron", "partner"), "sum of products of activations", **ADDED),
            Variable("neuron_moment", ("moment", "neuron"), "sum of powers", **ADDED),
            Variable("partner_moment", ("moment", "partner"), "sum of powers", **ADDED),
        ),
    )
    r = Variable("correlation", ("neuron", "partner"), "Pearson's r over kept tokens")
    return [sums, Derivation(correlations, by="neuron", gives=(r,))]


def moments(models, unit):
    """A pass through each model over the same tokens; products are summed where the run is."""
    tokens, mine, theirs = unit
    a = activations(models[0], tokens, *mine)
    b = activations(models[1], tokens, *theirs)
    return {
        "product": a.T @ b,
        "neuron_moment": torch.stack([a.sum(0), a.square().sum(0)]),
        "partner_moment": torch.stack([b.sum(0), b.square().sum(0)]),
    }


def activations(model, tokens, layer, index):
    """Activations of some neurons at the kept tokens, (T, n) float64."""
    site, kept = model.site(layer), tokens.positions[tokens.keep]

    with model.trace(tokens.inputs) as tracer:
        seen = nnsight.save(pick(site.neurons.input, kept, index).double().cpu())
        tracer.stop()

    return seen


def correlations(ds):
    """Pearson's r from the sums: names of dims do the broadcasting."""
    count = int(ds["keep"].sum())
    (a, aa), (b, bb) = ds["neuron_moment"] / count, ds["partner_moment"] / count
    a, aa, b, bb = (each.drop_vars("moment") for each in (a, aa, b, bb))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (ds["product"] / count - a * b) / np.sqrt((aa - a**2) * (bb - b**2))
    return {"correlation": r}
