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

from confreg.recipes.entropy_neurons import ablate

from confreg import derive, recipe, steps
from confreg import effects as fx

USUAL = (fx.loss.total, fx.loss.direct, fx.entropy.total, fx.entropy.direct)
ON_REQUEST = (fx.top1.total, fx.rank.total, *fx.SURE, *fx.ANSWERED)


@recipe(effects=USUAL, on_request=ON_REQUEST)
def group_ablation(
    study,
    *,
    layer: int = -1,
    mean_over: Literal["all", "kept"] = "all",
    mean_from: str = "",
    random_sets: int = 100,
    deviations: str = "-1,0,1",
    controls: Literal["random", "norm"] = "random",
):
    """Ablate sets of neurons at once at every token of the text.

    ``--neurons`` names the sets, separated by ``;``. ``deviations`` are the k.
    ``controls``: random sets as they come, or like the chosen one in the norms of output weights.
    ``mean_from``: other text, or a finished store, that mean and σ are taken from. With the effects
    ``confidence_total`` and ``correct_total`` also how well calibrated the model is with each set.
    """
    tokens = study.tokens()
    sets = study.sets(layer, random=random_sets, deviations=deviations, controls=controls)
    value = steps.ablation_value(
        study, sets.neurons, tokens, over=mean_over, spread=True, mean_from=mean_from
    )
    effects = study.effects(fx.loss.total, fx.loss.direct)
    return [
        steps.control_norms(study, sets),
        steps.ablation(study, ablate, sets, tokens, effects=effects, to=value),
        derive.mediation(sets, tokens, effects, fx.loss.total, fx.loss.direct),
        derive.against_controls(sets, tokens),
        derive.calibration(sets, tokens, effects, cube=study.options.reduce == "none"),
    ]
