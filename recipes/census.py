"""Census: what does every neuron of every layer write to the vocabulary? No text is needed.

From weights alone, by calling modules. With w a neuron's output weight as the final norm sees it
and c_t = cos(w, Ŵ_t) over the tokens t of the vocabulary, where Ŵ is the unembedding with the final
norm folded in and its mean row taken off (``centre_vocabulary``):

    |w|, ρ        norm, and share of it in the bottom singular vectors of Ŵ (see entropy_neurons)
    moments       mean, variance (LogitVar), skew E[z³] and kurtosis E[z⁴] of c; a Gaussian has 3
    tokens        those with the largest and the smallest c
    role          prediction, suppression, partition, entropy (a candidate), other

A role is a rule on weights and says nothing of what a neuron does in a text. What earlier layers
write, later ones change; there the moments are of the direct path only.

Gurnee, Horsley, Guo, Kheirkhah, Sun, Hathaway, Nanda, Bertsimas (2024), Universal Neurons in GPT2
Language Models, arXiv 2401.12181, sections 4.2 and 5.1.
"""

from confreg import derive, recipe, steps


@recipe()
def census(
    study,
    *,
    top: int = 10,
    kurtosis_above: float = 10.0,
    variance_above: float = 0.005,
    norm_quantile: float = 0.75,
    null_dims: int | None = None,
    centre_vocabulary: bool = True,
):
    """Describe the output weights of every neuron, or of those that are named.

    ``top`` tokens are named either way. ``kurtosis_above`` and ``variance_above`` mark prediction,
    suppression and partition neurons, ``norm_quantile`` with ρ candidates for entropy neurons.
    """
    neurons = study.every_neuron()
    return [
        steps.null_space(study, neurons, null_dims, centre_vocabulary),
        steps.vocabulary_statistics(study, neurons, top, centre_vocabulary),
        derive.roles(
            neurons, neurons.layer, kurtosis_above=kurtosis_above,
            variance_above=variance_above, norm_quantile=norm_quantile,
        ),
    ]  # fmt: skip
