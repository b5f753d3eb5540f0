"""Token-frequency neurons: which neurons move the prediction towards or away from the unigrams?

Let v be the direction of the token frequencies in logit space, log p_freq minus its mean over
the vocabulary, of norm 1, with p_freq = (count + 1)/Σ. Each neuron is ablated, and two effects
on every token are compared:

    total               ℓ' everything downstream recomputed
    frequency direct    ℓ'' = ℓ' + ((ℓ − ℓ')·v) v      the component along v put back

The direction mediates 1 − DE/TE of a neuron's effect on the loss. D(p_freq ‖ p_model), from the
unigrams to the prediction, says how far from them the model is: a neuron that raises it when
ablated pulled the prediction towards the unigrams. In weight space cos(W_U(γ ∘ w), v) says how
much of what the neuron writes lies along v.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, section 4.
"""

from typing import Literal

import nnsight

from confreg import Effect, effects, recipe

KL = "change of D(p_freq ‖ p_model), from the unigrams to the prediction"

EFFECTS = [
    Effect("loss_total", "change of loss, everything downstream recomputed"),
    Effect("loss_frequency_direct", "change of loss, token-frequency component put back"),
    Effect("entropy_total", "change of entropy, everything downstream recomputed"),
    Effect("kl_frequency_total", f"{KL}, everything downstream recomputed"),
    Effect("kl_frequency_frequency_direct", f"{KL}, token-frequency component put back"),
]


@recipe(effects=EFFECTS, statistics=True, mediated=("loss_total", "loss_frequency_direct"))
def token_frequency_neurons(
    model,
    batch,
    *,
    layer: int = -1,
    ablation: float | str = "mean",
    mean_over: Literal["all", "kept"] = "all",
    null_dims: int | None = None,
    counts: str | None = None,
    all_layers: bool = False,
):
    """Ablate every neuron of the batch at every token of the batch.

    ``counts`` is a file of token counts (.npy, .csv) or text to count, such as ``hf:dataset``;
    by default the whole text of the run is counted. ``all_layers`` adds the cosine of every
    neuron of the model.
    """
    down_proj, final_norm = model.down_proj(batch.layer), model.final_norm
    post_norm, unembedding = model.post_norm(batch.layer), model.unembedding
    readout_spec, write_spec = model.readout, model.write_spec

    with model.trace(batch.inputs):
        activation = down_proj.input
        if batch.engine == "forward":  # one copy of the text a neuron; else algebra
            down_proj.input = effects.ablate(activation, batch)
        mlp_output = None if post_norm is None else post_norm.input
        residual = final_norm.input
        logits = unembedding.output

        readout = effects.read_readout(final_norm, unembedding, residual, **readout_spec)
        write = effects.Write(down_proj, post_norm=post_norm, post_input=mlp_output, **write_spec)
        block = effects.measure(batch, readout, write, activation, residual, logits)
        nnsight.save(block)

    return block
