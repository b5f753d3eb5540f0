"""Entropy neurons: which neurons set how sure the model is, without saying of what?

An entropy neuron has a large output weight w, writes into the part of the residual stream
that the unembedding W_U barely reads, and acts through the final normalisation's scale s.
Each neuron is ablated, δ = mean(a) − a, and two effects on every token's loss are compared:

    total     ℓ' = c₀ + (s/s')(ℓ − c₀) + (δ/s') u         everything downstream recomputed
    direct    ℓ' = ℓ + (δ/s) u                            the final norm's scale frozen

with u = W_U(γ ∘ w). The norm mediates 1 − DE/TE, where TE and DE are the means of the
absolute change of the loss. In weight space LogitVar, the variance over the vocabulary of
cos(w, W_U[:, t]), is small, and ρ, the share of w in the bottom singular vectors of W_U,
is large.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, section 3.
"""

from typing import Literal

import nnsight

from confreg import Effect, effects, recipe

EFFECTS = [
    Effect("loss_total", "change of loss, everything downstream recomputed"),
    Effect("loss_direct", "change of loss, final norm's scale frozen"),
    Effect("entropy_total", "change of entropy, everything downstream recomputed"),
    Effect("entropy_direct", "change of entropy, final norm's scale frozen"),
    Effect("top1_total", "1 where the most likely token changes", "1", default=False),
    Effect("divergence_total", "D(p ‖ p') from the unablated prediction", default=False),
    Effect(
        "divergence_tempered_total", "what the best temperature leaves of D(p ‖ p')", default=False
    ),
    Effect(
        "temperature_share",
        "share of D(p ‖ p') that the best temperature removes",
        "1",
        default=False,
        needs=("divergence_total", "divergence_tempered_total"),
    ),
    Effect("rank_total", "change of the correct token's rank", "1", default=False),
]


@recipe(effects=EFFECTS, statistics=True, mediated=("loss_total", "loss_direct"))
def entropy_neurons(
    model,
    batch,
    *,
    layer: int = -1,
    ablation: float | str = "mean",
    mean_over: Literal["all", "kept"] = "all",
    null_dims: int | None = None,
):
    """Ablate every neuron of the batch at every token of the batch."""
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
