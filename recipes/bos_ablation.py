"""BOS ablation: is it induction heads that make the model surer when a text comes again?

A head is an induction head if it matches prefixes: on random tokens that come twice, period L,
the mean of its attention from a query t of the repeat to position t − L + 1, to what followed the
query's token the first time, is above a threshold. The mean is over all sequences. Such a head is
ablated by letting its queries attend to the first token only, where its output is v(0): all of
them at once, or, as the paper does, only the query of the token that is measured, so that the head
still works at the tokens before. Each head by itself, all of them together, and random heads as
controls are ablated on texts that are repeated once, and at the repeat are measured: the change of
every watched neuron's activation, of the loss, of the entropy, and of the final norm's scale.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, section 6.
"""

from typing import Literal

import nnsight

from confreg import derive, recipe, steps
from confreg import effects as fx

USUAL = (
    fx.loss.total,
    fx.loss.direct,
    fx.entropy.total,
    fx.entropy.direct,
    fx.norm_scale.total,
)
ON_REQUEST = (fx.top1.total, fx.rank.total, *fx.SURE)


@recipe(effects=USUAL, on_request=ON_REQUEST)
def bos_ablation(
    study,
    *,
    layer: int = -1,
    heads: str = "above:0.7",
    random_sets: int = 20,
    controls: Literal["same", "any"] = "same",
    queries: Literal["all", "one"] = "all",
    repeats: Literal["text", "random"] = "text",
    length: int = 50,
    count: int | None = None,
    score_sequences: int = 64,
    score_length: int = 50,
):
    """Let sets of attention heads attend to the first token, and watch neurons.

    ``heads``: above:0.7 (the paper's threshold), top:3 (the highest scores) or 5.1,7.2 (by name).
    ``--neurons`` are those that are watched, of one layer; ``controls``: random heads of the same
    layers, or of any. ``queries``: all of a head's attend to the first token, or one, that of the
    measured token, in a copy of the text of its own (the paper's, at some hundred times the cost).
    ``length`` tokens are repeated, of the text or random ones, in ``count``
    sequences or as many as ``--max-tokens`` holds; heads are scored on ``score_sequences``
    sequences of ``score_length`` random tokens, repeated.
    """
    tokens = study.repeats(repeats, length=length, count=count)
    if queries == "one":
        tokens = tokens.one_by_one()
    neurons = study.neurons(layer)
    sets = study.heads(heads, neurons, random=random_sets, controls=controls)
    effects = study.effects(fx.loss.total, fx.loss.direct)
    return [
        steps.prefix_scores(study, score_sequences, score_length, needed=not sets.is_known),
        steps.ablation(
            study, attend_first, sets, tokens, effects=effects, watched=neurons, changes=True
        ),
        derive.mediation(sets, tokens, effects, fx.loss.total, fx.loss.direct),
        derive.against_controls(sets, tokens),
        derive.changes_against_controls(sets, neurons),
        derive.taken_back(sets, neurons, tokens) if study.options.activations else None,
    ]


def attend_first(model, unit):
    """The text once, and once more for every set of heads, which attend to the first token."""
    attention = {layer: model.site(layer).heads for layer in unit.edits.layers()}
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        for layer, heads in attention.items():
            heads.input = unit.edits.apply(heads.input, unit.copies, layer, unit.tokens.single)
        activation = site.neurons.input
        block = site.measure(unit, activation)
        nnsight.save(block)

    return block
