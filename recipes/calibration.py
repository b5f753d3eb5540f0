"""Calibration: does a neuron make the model surer, or righter?

Every neuron of a layer is ablated, δ = v − a, and at every kept token two things are read: how sure
the model is, c, the probability of its likeliest token, and whether it is right, o = 1 where that
is the next token. From both follow the accuracy, the expected calibration error, the maximal one
and the Brier score, before and after each ablation. A neuron that only regulates confidence moves c
and leaves o; whether that is for the better the calibration errors say. Effects at tokens that are
not kept are not looked at, and NaN.

With ablated tokens as few as they are in one run, most neurons change the calibration error by
chance: hold a neuron against the others of its layer, or a set of them against random sets
(group_ablation, effects confidence_total and correct_total).

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254. The errors: Guo, Pleiss, Sun, Weinberger (2017), On Calibration
of Modern Neural Networks, arXiv 1706.04599; Nguyen, O'Connor (2015), arXiv 1508.05154.
"""

from typing import Literal

from confreg.recipes.entropy_neurons import ablate

from confreg import ConfregError, derive, recipe, steps
from confreg import effects as fx

USUAL = fx.SURE
ON_REQUEST = (
    fx.loss.total,
    fx.loss.direct,
    fx.entropy.total,
    fx.entropy.direct,
    *fx.ANSWERED,
)


@recipe(effects=USUAL, on_request=ON_REQUEST)
def calibration(
    study,
    *,
    layer: int = -1,
    ablation: float | str = "mean",
    mean_over: Literal["all", "kept"] = "all",
    mean_from: str = "",
):
    """Ablate every neuron of a layer, and read how sure the model is and whether it is right.

    ``mean_from``: other text, or a finished store, that means are taken from.
    """
    if study.options.reduce != "none":
        raise ConfregError(
            "Recipe 'calibration' sorts single tokens into bins: it cannot --reduce token."
        )
    tokens = study.tokens().at_kept()
    neurons = study.neurons(layer)
    value = steps.ablation_value(
        study, neurons, tokens, ablation, over=mean_over, mean_from=mean_from
    )
    effects = study.effects(fx.confidence.total, fx.correct.total)
    return [
        steps.ablation(study, ablate, neurons, tokens, effects=effects, to=value),
        derive.mediation(neurons, tokens, effects, fx.loss.total, fx.loss.direct),
        derive.calibration(neurons, tokens, effects),
    ]
