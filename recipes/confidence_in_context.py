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

from confreg.recipes.entropy_neurons import ablate

from confreg import ConfregError, derive, recipe, steps
from confreg import effects as fx

USUAL = (
    fx.loss.total,
    fx.loss.direct,
    fx.entropy.total,
    fx.reciprocal_rank.total,
    fx.top1.total,
)


@recipe(effects=USUAL, on_request=(*fx.SURE, *fx.ANSWERED))
def confidence_in_context(
    study,
    *,
    layer: int = -1,
    ablation: float | str = "mean",
    mean_over: Literal["all", "kept"] = "all",
    mean_from: str = "",
    null_dims: int | None = None,
    centre_vocabulary: bool = True,
):
    """Ablate chosen neurons at every token, and read the effects where they are active.

    ``mean_from``: other text, or a finished store, that means are taken from.
    """
    if study.options.reduce != "none":
        raise ConfregError(
            "Recipe 'confidence_in_context' is about single tokens: it cannot --reduce token. For "
            "sweeps over many neurons use entropy_neurons."
        )
    tokens = study.tokens()
    neurons = study.neurons(layer)
    value = steps.ablation_value(
        study, neurons, tokens, ablation, over=mean_over, mean_from=mean_from
    )
    effects = study.effects(fx.loss.total, fx.loss.direct)
    return [
        steps.weight_statistics(study, neurons, null_dims, centre_vocabulary),
        steps.ablation(study, ablate, neurons, tokens, effects=effects, to=value, activations=True),
        derive.mediation(neurons, tokens, effects, fx.loss.total, fx.loss.direct),
        derive.above_mean(neurons, tokens, mean_over),
    ]
