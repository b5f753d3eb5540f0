"""Token-frequency neurons: which neurons move the prediction towards or away from the unigrams?

Let v be the direction of the token frequencies in logit space, log p_freq minus its mean over
the vocabulary, of norm 1, with p_freq = (count + 1)/Σ. Each neuron is ablated, and two effects
on every token are compared:

    total               ℓ' everything downstream recomputed
    frequency direct    ℓ'' = ℓ' + ((ℓ − ℓ')·v) v      the component along v put back

The direction mediates 1 − DE/TE of a neuron's effect on the loss. D(p_freq ‖ p_model), from the
unigrams to the prediction, says how far from them the model is: a neuron that raises it when
ablated pulled the prediction towards the unigrams.

In weight space cos(C W_U(γ ∘ w), v) says how much of what the neuron writes lies along v. C takes
the mean over the vocabulary off, which softmax does not see (``centre_vocabulary``): this is
Pearson's r between what the neuron adds to the logits and log frequency.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, section 4.
"""

from typing import Literal

from confreg.recipes.entropy_neurons import ablate

from confreg import derive, recipe, steps
from confreg import effects as fx

USUAL = (
    fx.loss.total,
    fx.loss.frequency_direct,
    fx.entropy.total,
    fx.kl_frequency.total,
    fx.kl_frequency.frequency_direct,
)


@recipe(effects=USUAL, on_request=(*fx.SURE, *fx.ANSWERED))
def token_frequency_neurons(
    study,
    *,
    layer: int = -1,
    ablation: float | str = "mean",
    mean_over: Literal["all", "kept"] = "all",
    mean_from: str = "",
    null_dims: int | None = None,
    counts: str | None = None,
    all_layers: bool = False,
    centre_vocabulary: bool = True,
):
    """Ablate every neuron of a layer at every token of the text.

    ``counts`` is a file of token counts (.npy, .csv) or text to count, such as ``hf:dataset``;
    by default the whole text of the run is counted. ``all_layers`` adds the cosine of every
    neuron of the model. ``mean_from``: other text, or a finished store, that means are taken from.
    """
    frequencies = study.counts(counts)
    tokens = study.tokens(frequencies)
    neurons = study.neurons(layer)
    value = steps.ablation_value(
        study, neurons, tokens, ablation, over=mean_over, mean_from=mean_from
    )
    total, direct = fx.loss.total, fx.loss.frequency_direct
    effects = study.effects(total, direct)
    return [
        steps.weight_statistics(study, neurons, null_dims, centre_vocabulary),
        steps.frequency_cosines(study, neurons, frequencies, all_layers, centre_vocabulary),
        steps.ablation(
            study, ablate, neurons, tokens, effects=effects, to=value, counts=frequencies
        ),
        derive.mediation(neurons, tokens, effects, total, direct),
    ]
