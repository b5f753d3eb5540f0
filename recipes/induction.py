"""Induction: what do neurons do when a text comes again, and what does it take without them?

The second time a text is read its tokens can be predicted from the first time: loss and entropy
fall. Chosen neurons are followed through both occurrences, aligned token by token, and ablated to
their mean over the first occurrence (or over all tokens, or over the text as it is), each alone and
all together:

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

from confreg.recipes.entropy_neurons import ablate

from confreg import ConfregError, derive, recipe, steps
from confreg import effects as fx

USUAL = (fx.loss.total, fx.loss.direct, fx.entropy.total, fx.entropy.direct)
ON_REQUEST = (fx.top1.total, fx.rank.total, *fx.SURE)


@recipe(effects=USUAL, on_request=ON_REQUEST)
def induction(
    study,
    *,
    layer: int = -1,
    mean_over: Literal["first", "all", "text"] = "first",
    mean_from: str = "",
    random_sets: int = 20,
    controls: Literal["random", "norm"] = "random",
    repeats: Literal["text", "random", "ngrams"] = "text",
    length: int = 100,
    separator: str = "",
    ngram: int = 6,
    gap: int = 1,
    banned: str = "repeated,special,wordless",
    count: int | None = None,
):
    """Ablate chosen neurons, each alone and jointly, plainly and clipped, where a text comes again.

    ``mean_over``: the first occurrences' tokens, all of the sequences', or those of the text as it
    is, that many of it; ``mean_from``: or those of other text, or a finished store's means.
    ``controls``: random neurons as they come, or like the chosen ones in output weights' norms.
    ``length`` tokens are repeated after ``separator``, or n-grams of ``ngram`` tokens come again
    after ``gap`` others or more, of which none has what is ``banned``: repeated (a token twice),
    special (tokens), wordless (tokens without a letter or digit), newline, piece (of a character),
    or nothing; ``count`` sequences, or as many as ``--max-tokens`` holds.
    """
    if study.options.reduce != "none":
        raise ConfregError(
            "Recipe 'induction' is about single tokens: it cannot --reduce token. For sweeps over "
            "many neurons use entropy_neurons."
        )
    tokens = study.repeats(
        repeats, length=length, separator=separator, ngram=ngram, gap=gap, banned=banned,
        count=count,
    )  # fmt: skip
    sets = study.alone_and_joint(layer, random=random_sets, controls=controls)
    value = steps.ablation_value(
        study, sets.neurons, tokens, over=mean_over, occurrences=True, mean_from=mean_from
    )
    effects = study.effects(fx.loss.total, fx.loss.direct)
    return [
        steps.control_norms(study, sets),
        steps.ablation(
            study, ablate, sets, tokens,
            effects=effects, to=value, watched=sets.neurons, activations=True,
        ),
        derive.mediation(sets, tokens, effects, fx.loss.total, fx.loss.direct),
        derive.against_controls(sets, tokens),
        derive.repeat_shift(sets, tokens),
    ]  # fmt: skip
