"""Entropy neurons: which neurons set how sure the model is, without saying of what?

An entropy neuron has a large output weight w, writes into the part of the residual stream
that the unembedding W_U barely reads, and acts through the final normalisation's scale s.
Each neuron is ablated, δ = mean(a) − a, and two effects on every token's loss are compared:

    total     ℓ' = c₀ + (s/s')(ℓ − c₀) + (δ/s') u         everything downstream recomputed
    direct    ℓ' = ℓ + (δ/s) u                            the final norm's scale frozen

with u = W_U(γ ∘ w). The norm mediates 1 − DE/TE, where TE and DE are the means of the
absolute change of the loss.

In weight space the unembedding is taken as Ŵ, the final norm folded in and its mean row taken off
every row: softmax does not see what is added to all logits alike (``centre_vocabulary``; where
there is a softcap, which sees it, nothing is taken off). LogitVar, the variance over the vocabulary
of cos(w, Ŵ_t), is small, and ρ, the share of w's norm along the bottom right singular vectors of
Ŵ, is large: far above the √(k/d) that k of them have of a random direction of d dimensions.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, section 3.
"""

from typing import Literal

import nnsight

from confreg import derive, recipe, steps
from confreg import effects as fx

USUAL = (fx.loss.total, fx.loss.direct, fx.entropy.total, fx.entropy.direct)
ON_REQUEST = (
    fx.top1.total,
    fx.divergence.total,
    fx.tempered_divergence.total,
    fx.temperature_share.total,
    fx.rank.total,
    *fx.SURE,
    *fx.ANSWERED,
)


@recipe(effects=USUAL, on_request=ON_REQUEST)
def entropy_neurons(
    study,
    *,
    layer: int = -1,
    ablation: float | str = "mean",
    mean_over: Literal["all", "kept"] = "all",
    mean_from: str = "",
    null_dims: int | None = None,
    centre_vocabulary: bool = True,
):
    """Ablate every neuron of a layer at every token of the text.

    ``mean_from``: other text, or a finished store, that means are taken from.
    """
    tokens = study.tokens()
    neurons = study.neurons(layer)
    value = steps.ablation_value(
        study, neurons, tokens, ablation, over=mean_over, mean_from=mean_from
    )
    effects = study.effects(fx.loss.total, fx.loss.direct)
    return [
        steps.weight_statistics(study, neurons, null_dims, centre_vocabulary),
        steps.ablation(study, ablate, neurons, tokens, effects=effects, to=value),
        derive.mediation(neurons, tokens, effects, fx.loss.total, fx.loss.direct),
        derive.temperature_share(
            neurons, effects, fx.divergence.total, fx.tempered_divergence.total
        ),
    ]


def ablate(model, unit):
    """The text once, and, where no algebra does it, once more with each neuron replaced."""
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        activation = site.neurons.input
        if unit.copies:
            site.neurons.input = unit.edits.apply(activation, unit.copies)
        block = site.measure(unit, activation)
        nnsight.save(block)

    return block
