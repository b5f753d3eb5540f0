"""Confidence in context: where does a neuron act, and does it make the model surer or less sure?

Chosen neurons are ablated, δ = mean(a) − a, and their effects are read token by token where they
are active (above their mean): the change of the loss against the loss before, the change of the
correct token's reciprocal rank 1/(rank + 1), and the change of entropy. A neuron that only tempers
the prediction raises the loss of tokens that were predicted well and lowers that of tokens that
were predicted badly, or the reverse, and leaves ranks alone.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, section 5 and figure 4.
"""

from typing import Literal

import nnsight

from confreg import Effect, effects, recipe

EFFECTS = [
    Effect("loss_total", "change of loss, everything downstream recomputed"),
    Effect("loss_direct", "change of loss, final norm's scale frozen"),
    Effect("entropy_total", "change of entropy, everything downstream recomputed"),
    Effect("reciprocal_rank_total", "change of the correct token's 1/(rank + 1)", "1"),
    Effect("top1_total", "1 where the most likely token changes", "1"),
]


@recipe(effects=EFFECTS, statistics=True, context=True)
def confidence_in_context(
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
