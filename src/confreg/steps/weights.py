"""Steps about weights: no token goes through the model, modules are only called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np

from confreg.axes import Axis, Label, Spans, Variable
from confreg.subjects.neurons import Neurons
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis
    from confreg.tokens.counts import Counts


def weight_statistics(
    study: Study,
    neurons: NeuronAxis,
    null_dims: int | None = None,
    centre_vocabulary: bool = True,
) -> list[Item]:
    """How the neurons' output weights meet the unembedding.

    Gives ``w_out_norm``, ``logit_var``, ``null_fraction (neuron)``, ``singular_value (component)``,
    the number ``null_dims``, and what ρ a random direction has: ``null_fraction_chance`` on
    average, and ``null_fraction_chance_max`` for the largest of as many directions as there are
    neurons.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    null_dims : int, optional
        k of ρ; by default where the spectrum drops, see `choose_null_dims` of
        `confreg.effects.weights`.
    centre_vocabulary : bool
        Take the mean row off every row of the unembedding, which softmax does not see.
    """
    import torch

    from confreg.effects import Weights

    model, memory = study.model.about, study.budget.memory
    norm, *of_null_space = null_space_variables(neurons)

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Weights:
        start, stop = spans.bounds[neurons.name]
        index = torch.from_numpy(neurons.neurons.index[start:stop].copy())
        owned = torch.from_numpy(model.owned)
        return Weights(
            study.two_tokens, int(neurons.layer[start]), index, owned, null_dims, memory,
            centre_vocabulary,
        )  # fmt: skip

    step = Step(
        weights,
        over=(neurons,),
        along=(component_axis(model.d_model),),
        unit=unit,
        cost=lambda spans: 0,
        name="weight-space statistics",
        attributes={"centre_vocabulary": int(centre_vocabulary)},
        gives=(
            norm,
            Variable(
                "logit_var",
                (neurons.name,),
                "variance over the vocabulary of cos(w_out, unembedding)",
            ),
            *of_null_space,
        ),
    )
    return [step, chance_of_null_fraction(model.d_model, len(neurons))]


def component_axis(width: int) -> Axis:
    """The singular vectors of the folded unembedding, as the axis ``component``."""
    vectors = Label(
        np.arange(width, dtype=np.int32),
        "right singular vector of the folded unembedding, largest first",
        kind="other",
    )
    return Axis("component", {"component": vectors})


def null_space_variables(neurons: Axis) -> tuple[Variable, ...]:
    """``w_out_norm``, ``null_fraction (neuron)``, ``singular_value (component)``, ``null_dims``."""
    return (
        Variable("w_out_norm", (neurons.name,), "norm of the output weight"),
        Variable(
            "null_fraction",
            (neurons.name,),
            "share of w_out in the bottom singular vectors of the folded unembedding",
        ),
        Variable("singular_value", ("component",), "singular value of the folded unembedding"),
        Variable(
            "null_dims", (), "bottom singular vectors that count as the null space", "1", "int64"
        ),
    )


def weights(model: Any, unit: Any) -> dict[str, Any]:
    """Weight-space statistics of one layer's neurons, before any layer has run."""
    site = model.site(unit.layer)
    with model.trace(unit.inputs) as tracer:
        found = nnsight.save(unit.statistics(site, site.begin.input))
        tracer.stop()
    return found


def chance_of_null_fraction(width: int, count: int) -> Derivation:
    """What ρ random directions of some width have, on average and the largest of ``count``."""

    def chance(ds: xr.Dataset) -> dict[str, float]:
        from scipy import stats

        k = int(ds["null_dims"])
        if k >= width:
            return {"null_fraction_chance": 1.0, "null_fraction_chance_max": 1.0}
        of_square = stats.beta(k / 2, (width - k) / 2)
        largest = float(of_square.ppf(1 - 1 / max(count, 2)))
        return {
            "null_fraction_chance": float(np.sqrt(k / width)),
            "null_fraction_chance_max": largest**0.5,
        }

    return Derivation(
        chance,
        reads=("null_dims",),
        gives=(
            Variable(
                "null_fraction_chance",
                (),
                "root mean square of ρ over random directions",
                "1",
                "float64",
            ),
            Variable(
                "null_fraction_chance_max",
                (),
                f"largest ρ of {count:,} random directions, about",
                "1",
                "float64",
            ),
        ),
    )


def frequency_cosines(
    study: Study,
    neurons: NeuronAxis,
    counts: Counts,
    all_layers: bool = False,
    centre_vocabulary: bool = True,
) -> list[Item]:
    """How much of what the neurons write to the logits lies along the token frequencies.

    Gives ``frequency_cosine (neuron)`` and, of ``all_layers``,
    ``frequency_cosine_all (model_layer, model_index)``.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    counts : Counts
    all_layers : bool
        Give every neuron of the model.
    centre_vocabulary : bool
        Take the mean over the vocabulary off what a neuron writes: the cosine is then Pearson's r
        between that and log frequency.
    """
    import torch

    from confreg.effects import FrequencyWeights

    model = study.model.about
    layers = list(range(model.n_layers)) if all_layers else neurons.layers
    layer_axis = Axis.of(
        "model_layer", np.arange(model.n_layers, dtype=np.int32), "layer of the model, from 0"
    )
    index_axis = Axis.of(
        "model_index", np.arange(model.n_neurons, dtype=np.int32),
        "index of a neuron in its layer, from 0",
    )  # fmt: skip

    widths = [model.width(layer) for layer in layers]
    index = np.concatenate([np.arange(width) for width in widths])
    every = Neurons(np.repeat(layers, widths), index, model.banks)

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> FrequencyWeights:
        packed = torch.from_numpy(counts.packed(model.owned))
        memory = study.budget.memory
        return FrequencyWeights(study.two_tokens, layers, packed, memory, centre_vocabulary)

    def cosines(model_: Any, unit_: Any) -> dict[str, Any]:
        found = np.full((model.n_layers, model.n_neurons), np.nan, dtype=np.float32)
        known = weights_of_layers(model_, unit_).numpy()
        found[layers, : known.shape[1]] = known
        return {"frequency_cosine_all": found}

    text = "cosine of what the neuron writes to the logits and the token-frequency direction"
    step = Step(
        cosines,
        over=(),
        along=(layer_axis, index_axis),
        unit=unit,
        cost=lambda spans: 0,
        also_reads=(every,),
        name="token-frequency cosines",
        gives=(
            Variable(
                "frequency_cosine_all",
                ("model_layer", "model_index"),
                "frequency_cosine of every neuron of the model",
                kept=all_layers,
            ),
        ),
    )

    def of_neurons(ds: xr.Dataset) -> dict[str, np.ndarray]:
        table = ds["frequency_cosine_all"].values
        return {"frequency_cosine": table[neurons.neurons.layer, neurons.neurons.index]}

    gives = (Variable("frequency_cosine", (neurons.name,), text),)
    return [step, Derivation(of_neurons, gives, along=(neurons,))]


def weights_of_layers(model: Any, unit: Any) -> Any:
    """Weight-space statistics of several layers' neurons, before any layer has run."""
    sites = [model.site(layer) for layer in unit.layers]
    begin = sites[0].begin
    with model.trace(unit.inputs) as tracer:
        found = nnsight.save(unit.statistics(sites, begin.input))
        tracer.stop()
    return found
