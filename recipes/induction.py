"""Induction: what do neurons do when a text comes again, and what does it take without them?

The second time a text is read its tokens can be predicted from the first time: loss and entropy
fall. Chosen neurons are followed through both occurrences, aligned token by token, and ablated to
their mean over the first occurrence, each alone and all together:

    plain      δ = mean − a
    clipped    δ = min(mean − a, 0) for a neuron that the repeat moves up, else max(mean − a, 0)

so that a clipped ablation takes back only what the repeat brought about. A neuron is moved up if
its mean activation over the second occurrence is above that over the first. Random neurons and
random sets of the same size from the same layer are ablated in the same ways, and effects are
averaged over the second occurrence. The text is a piece of the corpus (``text``) or random tokens
(``random``), whole and repeated once, or an n-gram that comes again by itself (``ngrams``).

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
    Effect("top1_total", "1 where the most likely token changes", "1", default=False),
    Effect("rank_total", "change of the correct token's rank", "1", default=False),
]


@recipe(effects=EFFECTS, statistics=False, sets=True, repeats=True)
def induction(
    model,
    batch,
    *,
    layer: int = -1,
    mean_over: Literal["first", "all"] = "first",
    random_sets: int = 20,
    repeats: Literal["text", "random", "ngrams"] = "text",
    length: int = 100,
    separator: str = "",
    ngram: int = 6,
    gap: int = 1,
    count: int | None = None,
):
    """Ablate every set of the batch at every token of the batch.

    ``length`` tokens are repeated after ``separator``, or n-grams of ``ngram`` tokens come again
    after ``gap`` others or more; ``count`` sequences, or as many as ``--max-tokens`` holds.
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
