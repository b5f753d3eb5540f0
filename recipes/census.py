"""Census: what does every neuron of every layer read, and write to the vocabulary? From weights.

No text is needed: modules are called. With w a neuron's output weight as the final norm sees it
and c_t = cos(w, Ŵ_t) over the tokens t of the vocabulary, where Ŵ is the unembedding with the final
norm folded in and its mean row taken off (``centre_vocabulary``):

    |w|, ρ        norm, and share of it in the bottom singular vectors of Ŵ (see entropy_neurons)
    moments       mean, variance (LogitVar), skew E[z³] and kurtosis E[z⁴] of c; a Gaussian has 3
    tokens        those with the largest and the smallest c
    role          prediction, suppression, partition, entropy (a candidate), other

and with w_in and w_gate what it reads from the residual stream, the norm before the MLP folded in:

    |w_in|, b     norms and biases, of the input and of the gate
    cosines       of input, gate and output weight with one another; how rare they are among pairs
                  of different neurons of the layer
    input_output  of gated MLPs: enrichment, depletion, their conditional kinds, and so on

A role is a rule on weights and says nothing of what a neuron does in a text. What earlier layers
write, later ones change; there the moments are of the direct path only.

Gurnee, Horsley, Guo, Kheirkhah, Sun, Hathaway, Nanda, Bertsimas (2024), Universal Neurons in GPT2
Language Models, arXiv 2401.12181, sections 4.2 and 5.1; Gerstner, Schütze (2025), arXiv 2505.17936.
"""

import numpy as np

from confreg import derive, recipe, steps

WRITTEN = ("null_fraction", "vocab_kurtosis")
READ = ("w_in_norm", "input_bias", "in_out_cosine")
GATED = ("w_gate_norm", "gate_out_cosine", "gate_in_cosine")


@recipe()
def census(
    study,
    *,
    top: int = 10,
    kurtosis_above: float = 10.0,
    variance_above: float = 0.005,
    norm_quantile: float = 0.75,
    cosine_above: float = 0.5,
    null_dims: int | None = None,
    centre_vocabulary: bool = True,
    directions: str = "",
    keep_weights: bool = False,
):
    """Describe the weights of every neuron, or of those that are named.

    ``top`` tokens are named either way. ``kurtosis_above`` and ``variance_above`` mark prediction,
    suppression and partition neurons, ``norm_quantile`` with ρ candidates for entropy neurons;
    ``cosine_above`` sets classes of gated neurons apart. ``directions`` is a .npy or .safetensors
    file (``FILE:NAME`` of several tensors) whose rows are described in place of neurons.
    ``keep_weights`` keeps output weights, for comparisons of models.
    """
    roles = {
        "kurtosis_above": kurtosis_above,
        "variance_above": variance_above,
        "norm_quantile": norm_quantile,
    }
    if directions:
        axis = steps.directions(study, directions)
        return [
            steps.of_directions(study, axis, null_dims, top, centre_vocabulary),
            derive.roles(axis, np.zeros(len(axis)), **roles),
        ]
    about = study.model.about
    neurons = steps.several_layers(study.every_neuron(), about.d_model)
    read, gated = bool(about.row.up), bool(about.row.up and about.row.gate)
    known = [*WRITTEN, *(READ if read else ()), *(GATED if gated else ())]
    return [
        steps.null_space(study, neurons, null_dims, centre_vocabulary),
        steps.vocabulary_statistics(study, neurons, top, centre_vocabulary),
        derive.roles(neurons, neurons.layer, **roles),
        steps.input_weights(study, neurons),
        derive.input_output(neurons, cosine_above) if gated else None,
        derive.within_layer(neurons, neurons.layer, known),
        steps.output_weights(study, neurons) if keep_weights else None,
    ]
