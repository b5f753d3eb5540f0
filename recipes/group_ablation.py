"""Group ablation: do chosen neurons, ablated together, do more than random sets of the same size?

A set S of neurons of one layer is ablated at once, x' = x + Σ_i δ_i w_i with δ_i = v_i − a_i, and
so are random sets of the same size from the same layer, none of which holds a neuron of S. The
ablation values are mean(a_i) + k·σ(a_i): the mean, and values off it, since a neuron that only
regulates confidence should do so in both directions. p_random is the share of random sets whose
mean absolute effect is at least as large.

What follow-up work missed when it tried to trust entropy neurons: arXiv 2509.10663. The neurons:
Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), arXiv 2406.16254.
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
    Effect("rank_total", "change of the correct token's rank", "1", default=False),
]


@recipe(effects=EFFECTS, statistics=False, sets=True)
def group_ablation(
    model,
    batch,
    *,
    layer: int = -1,
    mean_over: Literal["all", "kept"] = "all",
    random_sets: int = 100,
    deviations: str = "-1,0,1",
):
    """Ablate every set of the batch at every token of the batch.

    ``--neurons`` names the sets, separated by ``;``. ``deviations`` are the k.
    """
    down_proj, final_norm = model.down_proj(batch.layer), model.final_norm
    post_norm, unembedding = model.post_norm(batch.layer), model.unembedding
    readout_spec, write_spec = model.readout, model.write_spec

    with model.trace(batch.inputs):
        activation = down_proj.input
        if batch.engine == "forward":  # one copy of the text a set; else algebra
            down_proj.input = effects.ablate(activation, batch)
        mlp_output = None if post_norm is None else post_norm.input
        residual = final_norm.input
        logits = unembedding.output

        readout = effects.read_readout(final_norm, unembedding, residual, **readout_spec)
        write = effects.Write(down_proj, post_norm=post_norm, post_input=mlp_output, **write_spec)
        block = effects.measure(batch, readout, write, activation, residual, logits)
        nnsight.save(block)

    return block
