"""Knowledge conflicts: do neurons decide whether a model trusts its context or what it knows?

A prompt states a false answer and then asks. The likeliest token at its end is *contextual* if it
begins what the context says (the document's target), *parametric* if it begins what is known
without it (the contrast), and else *neither*. Sets of neurons of one layer are fixed together,
x' = x + Σ_i (v_i − a_i) w_i, and so are random sets of the same size none of which holds a chosen
neuron. With n(s → k) prompts that go from s to k:

    conversion ratio of k    Σ_{s≠k} n(s → k) / Σ_{s≠k} n(s)
    transition score         share of prompts that change class

at v = the mean, the median, the mode and mean ± 3σ, no further than the smallest and the largest
activation. A set matters if it converts more prompts than the random sets do.

Tighidet et al. (2025), arXiv 2509.10663. The neurons: Stolfo, Wu, Gurnee, Belinkov, Song, Sachan,
Nanda (2024), Confidence Regulation Neurons in Language Models, arXiv 2406.16254.
"""

from typing import Literal

import torch
from confreg.recipes.entropy_neurons import ablate

from confreg import ConfregError, derive, recipe, steps
from confreg import effects as fx


def likeliest(logits, targets):
    """The likeliest token, (m,)."""
    return logits.argmax(-1)


def as_it_is(after, before):
    """What is read is the token after the ablation, no change."""
    return after.float()


def no_mean(sums):
    """Numbers of tokens have no mean."""
    return torch.nan


PREDICTED = fx.Measure(
    "predicted", "1", "vocabulary index of the likeliest token", of=likeliest, change=as_it_is,
    dtype="int64", effect="vocabulary index of the likeliest token, ablated", pathways=("total",),
    bare=True, reduced=no_mean,
)  # fmt: skip
USUAL = (PREDICTED.total, fx.entropy.total, fx.confidence.total)
ON_REQUEST = (fx.loss.total, fx.loss.direct, fx.entropy.direct)


@recipe(effects=USUAL, on_request=ON_REQUEST)
def knowledge_conflict(
    study,
    *,
    layer: int = -1,
    ways: str = "mean,median,mode,low,high",
    mean_over: Literal["all", "kept"] = "all",
    mean_from: str = "",
    random_sets: int = 100,
    controls: Literal["random", "norm"] = "random",
):
    """Fix sets of neurons where a context contradicts what the model knows.

    ``--neurons`` names the sets, separated by ``;``. ``ways``: mean, median, mode, low and high
    (mean ± 3σ, clipped), quantiles (q05) or numbers, over the tokens of ``mean_over`` of the
    prompts, or of the text ``mean_from``. ``controls``: random sets as they come, or like the
    chosen one in the norms of output weights.
    """
    if study.options.reduce != "none":
        raise ConfregError(
            "Recipe 'knowledge_conflict' reads single answers: it cannot --reduce token."
        )
    tokens = study.tokens().at_kept()
    found = steps.read_ways(ways, "ways")
    sets = study.fixed_sets(layer, ways=found, random=random_sets, controls=controls)
    value = steps.typical_values(
        study, sets.neurons, tokens, found, over=mean_over, mean_from=mean_from
    )
    effects = study.effects(PREDICTED.total, fx.entropy.total)
    return [
        steps.control_norms(study, sets),
        steps.ablation(study, ablate, sets, tokens, effects=effects, to=value),
        derive.conflict(sets, tokens, effects, PREDICTED.total),
    ]
