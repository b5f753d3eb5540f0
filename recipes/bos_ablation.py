"""BOS ablation: is it induction heads that make the model surer when a text comes again?

A head is an induction head if it matches prefixes: on random tokens that come twice, period L,
the mean of its attention from a query t of the repeat to position t − L + 1, to what followed the
query's token the first time, is above a threshold. The mean is over all sequences. Such a head is
ablated by letting all of its queries attend to the first token only: its output is v(0) at every
position. Each head by itself, all of them together, and random heads as controls are ablated on
texts that are repeated once, and at the repeat are measured: the change of every watched neuron's
activation, of the loss, of the entropy, and of the final norm's scale.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, section 6.
"""

from typing import Literal

import nnsight

from confreg import Effect, effects, recipe

EFFECTS = [
    Effect("loss_total", "change of loss, everything downstream recomputed"),
    Effect("loss_direct", "change of loss, final norm's scale frozen"),
    Effect("entropy_total", "change of entropy, everything downstream recomputed"),
    Effect("entropy_direct", "change of entropy, final norm's scale frozen"),
    Effect("norm_scale_total", "change of the final norm's scale", "1"),
    Effect("top1_total", "1 where the most likely token changes", "1", default=False),
    Effect("rank_total", "change of the correct token's rank", "1", default=False),
]


@recipe(effects=EFFECTS, statistics=False, heads=True, repeats=True)
def bos_ablation(
    model,
    batch,
    *,
    layer: int = -1,
    heads: str = "above:0.7",
    random_sets: int = 20,
    controls: Literal["same", "any"] = "same",
    repeats: Literal["text", "random"] = "text",
    length: int = 50,
    count: int | None = None,
    score_sequences: int = 64,
    score_length: int = 50,
):
    """Let every set of heads of the batch attend to the first token, and watch neurons.

    ``heads``: above:0.7 (the paper's threshold), top:3 (the highest scores) or 5.1,7.2 (by name).
    ``--neurons`` are those that are watched, of one layer; ``controls``: random heads of the same
    layers, or of any. ``length`` tokens are repeated, of the text or random ones, in ``count``
    sequences or as many as ``--max-tokens`` holds; heads are scored on ``score_sequences``
    sequences of ``score_length`` random tokens, repeated.
    """
    attention = {layer: model.attention_out(layer) for layer in batch.head_layers()}
    down_proj, final_norm = model.down_proj(batch.layer), model.final_norm
    unembedding, readout_spec = model.unembedding, model.readout

    with model.trace(batch.inputs):  # one copy of the text a set
        for at, projection in attention.items():
            projection.input = effects.attend_first(projection.input, batch, at)
        activation = down_proj.input
        residual = final_norm.input
        logits = unembedding.output

        readout = effects.read_readout(final_norm, unembedding, residual, **readout_spec)
        block = effects.measure(batch, readout, None, activation, residual, logits)
        nnsight.save(block)

    return block
