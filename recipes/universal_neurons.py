"""Universal neurons: which neurons fire where some neuron of every other model fires?

Models that read the same tokens, for instance trained from other seeds. Of a neuron i of this model
and all neurons j of another, over kept tokens, with Pearson's r of their activations,

    match         the j of the largest r, of all layers or of those of like depth
    baseline      the largest r with the other's layers rotated at random: what mixtures give
    excess        match less baseline, mean over the other models

A neuron is called universal where the excess is above 0.5. r is signed: a neuron that falls where
this one fires is no match. Products are summed over the text, and no activation is kept; rotations
follow from the sums in closed form, so that there are as many as one likes.

What universal neurons are like follows from weights and from moments over the text: as percentiles
within the layer (``traits``).

Gurnee, Horsley, Guo, Kheirkhah, Sun, Hathaway, Nanda, Bertsimas (2024), Universal Neurons in GPT2
Language Models, arXiv 2401.12181.
"""

from confreg import Network, derive, recipe, steps

ACTIVE = ("mean", "deviation", "skew", "kurtosis", "frequency")
WRITTEN = ("w_out_norm", "null_fraction", "logit_var", "vocab_skew", "vocab_kurtosis")


@recipe()
def universal_neurons(
    study,
    *,
    other: tuple[Network, ...] = (),
    layers: int | None = None,
    draws: int = 4,
    above: float = 0.5,
    weights: bool = True,
):
    """Match every neuron, or those that are named, with the neurons of other models.

    ``layers`` keeps to layers within so many of the same relative depth; ``draws`` rotations make
    the baseline; ``weights=false`` leaves out what the neurons write to the vocabulary.
    """
    neurons = study.every_neuron()
    active = tuple(f"activation_{moment}" for moment in ACTIVE)
    return [
        steps.matches(study, neurons, other, layers=layers, draws=draws, above=above),
        [
            steps.null_space(study, neurons),
            steps.vocabulary_statistics(study, neurons),
            derive.roles(neurons, neurons.layer),
        ]
        if weights
        else [],
        derive.traits(
            neurons, neurons.layer, "universal", (*active, *(WRITTEN if weights else ()))
        ),
    ]
