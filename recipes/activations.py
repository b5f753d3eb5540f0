"""Activations: what do neurons do over a text, before anything is ablated?

Of every neuron of every layer, or of those that are named, over kept tokens:

    moments       mean, deviation, skew E[z³] and kurtosis E[z⁴] (a Gaussian has 3), merged block by
                  block in float64, and the share of tokens at which the activation is above 0
    extremes      the tokens of the largest and of the smallest activations

With ``--activations`` every activation is kept, too, in float32 or, ``--dtype-on-disk float16``, in
half the room: for `confreg.match`, `confreg.redundancy`, `confreg.series`, `confreg.families`. The
activation is the input of the down-projection: of a gated MLP act(gate) · up.

Gurnee, Horsley, Guo, Kheirkhah, Sun, Hathaway, Nanda, Bertsimas (2024), Universal Neurons in GPT2
Language Models, arXiv 2401.12181, section 4.2.
"""

from confreg import recipe, steps


@recipe()
def activations(study, *, top: int = 10):
    """Read the text once a layer; ``top`` tokens are kept either way."""
    tokens, neurons = study.tokens(), study.every_neuron()
    return [
        steps.activation_statistics(study, neurons, tokens, top),
        [steps.activations(study, neurons, tokens)] if study.options.activations else [],
    ]
