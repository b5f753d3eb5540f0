"""Dose: what does a prediction do as neurons are fixed at one value after another?

Sets of neurons of one layer (of one neuron, if one is named) are fixed at every token to each of
some values: numbers, quantiles of their own activations, or mean + α(a − mean), which takes their
activity away (α = 0), leaves it (1) or doubles it (2). Random sets that are like the chosen one in
‖w_out‖ are fixed in the same ways: what they do is what a write of that size does. Read are the
loss, the entropy, the correct token's 1/(rank + 1), the likeliest token's probability, and the
final norm's scale, on the last layer in closed form too, with y = Σ_i (v_i − a_i) w_i:

    s'² = s² + (2 ⟨Px, Py⟩ + |Py|²) / d

A neuron that sets confidence by the norm moves entropy and scale together, in one direction, and
leaves ranks alone.

Stolfo, Wu, Gurnee, Belinkov, Song, Sachan, Nanda (2024), Confidence Regulation Neurons in
Language Models, arXiv 2406.16254, ablate to values other than the mean in the same way.
"""

from typing import Literal

from confreg.recipes.entropy_neurons import ablate

from confreg import derive, recipe, steps
from confreg import effects as fx

USUAL = (
    fx.loss.total,
    fx.entropy.total,
    fx.reciprocal_rank.total,
    fx.confidence.total,
    fx.norm_scale.total,
)
ON_REQUEST = (
    fx.loss.direct,
    fx.entropy.direct,
    fx.rank.total,
    fx.top1.total,
    fx.correct.total,
)


@recipe(effects=USUAL, on_request=ON_REQUEST)
def dose(
    study,
    *,
    layer: int = -1,
    values: str = "q05,q25,q50,q75,q95",
    mean_over: Literal["all", "kept"] = "all",
    mean_from: str = "",
    random_sets: int = 20,
    controls: Literal["random", "norm"] = "norm",
):
    """Fix sets of neurons at one value after another.

    ``--neurons`` names the sets, separated by ``;``. ``values``: numbers (-1,0,2), quantiles
    (q05,q50), mean, median, mode, low and high (mean ± 3σ, clipped), or alpha:0,1,2, over the
    tokens of ``mean_over``, or of the text ``mean_from``. ``controls``: random sets like the chosen
    one in the norms of output weights, or as they come.
    """
    tokens = study.tokens()
    ways = steps.read_ways(values, "values")
    sets = study.fixed_sets(layer, ways=ways, random=random_sets, controls=controls)
    value = steps.typical_values(
        study, sets.neurons, tokens, ways, over=mean_over, mean_from=mean_from
    )
    effects = study.effects()
    return [
        steps.control_norms(study, sets),
        steps.ablation(study, ablate, sets, tokens, effects=effects, to=value),
        derive.against_controls(sets, tokens),
        derive.dose_response(sets, ways),
    ]
