"""Steps of a census: every neuron's output weight, from weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Axis, Label, Spans, Variable
from confreg.steps.weights import (
    chance_of_null_fraction,
    component_axis,
    null_space_variables,
    weights_of_layers,
)
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis


def several_layers(neurons: NeuronAxis, width: int) -> NeuronAxis:
    """The same neurons, such that units of work have those of several layers.

    Each unit makes the unembedding's rows anew, which is as much work as ``width`` neurons are,
    the model's d. So it has some eight times as many.
    """
    from dataclasses import replace

    together = max(1, round(8 * width / max(neurons.width, 1)))
    return replace(neurons, together=neurons.layer // together)


def by_layer(neurons: NeuronAxis, start: int, stop: int) -> tuple[list[int], list[torch.Tensor]]:
    """The layers of a span of neurons, and of each the indices of those in it."""
    import torch

    layer, index = neurons.layer[start:stop], neurons.neurons.index[start:stop]
    layers = np.unique(layer).tolist()
    return layers, [torch.from_numpy(index[layer == one].copy()) for one in layers]


def null_space(
    study: Study,
    neurons: NeuronAxis,
    null_dims: int | None = None,
    centre_vocabulary: bool = True,
) -> list[Item]:
    """Norms and ρ of neurons of any layers, from one decomposition of the unembedding.

    Gives what `weight_statistics` gives, except ``logit_var``; its parameters are the same.
    """
    import torch

    from confreg.effects import NullSpace

    model, memory = study.model.about, study.budget.memory

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> NullSpace:
        layers, chosen = by_layer(neurons, 0, len(neurons))
        return NullSpace(
            study.two_tokens, layers, chosen, torch.from_numpy(model.owned), null_dims, memory,
            centre_vocabulary,
        )  # fmt: skip

    step = Step(
        weights_of_layers,
        over=(),
        along=(neurons, component_axis(model.d_model)),
        unit=unit,
        cost=lambda spans: 0,
        name="null space of the unembedding",
        attributes={"centre_vocabulary": int(centre_vocabulary)},
        gives=null_space_variables(neurons),
    )
    return [step, chance_of_null_fraction(model.d_model, len(neurons))]


def vocabulary_statistics(
    study: Study, neurons: NeuronAxis, top: int = 10, centre_vocabulary: bool = True
) -> list[Item]:
    """Moments over the vocabulary of what each neuron writes, and the tokens it moves most.

    Gives ``vocab_mean``, ``logit_var``, ``vocab_skew``, ``vocab_kurtosis (neuron)``, ``raised`` and
    ``lowered (neuron, place)``, token ids, and as text ``raised_text`` and ``lowered_text
    (neuron)``.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    top : int
        Tokens to name of each neuron.
    centre_vocabulary : bool
        As of `weight_statistics`.
    """
    import torch

    from confreg.effects import Vocabulary

    model, memory = study.model.about, study.budget.memory
    place = place_axis(study, top)

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Vocabulary:
        layers, chosen = by_layer(neurons, *spans.bounds[neurons.name])
        return Vocabulary(
            study.two_tokens, layers, chosen, torch.from_numpy(model.owned), memory,
            centre_vocabulary, len(place),
        )  # fmt: skip

    step = Step(
        weights_of_layers,
        over=(neurons,),
        along=(place,),
        unit=unit,
        cost=lambda spans: 0,
        name="moments over the vocabulary",
        effort=vocabulary_effort(study, len(neurons)),
        gives=vocabulary_variables(neurons),
    )
    return [step, token_texts(study, neurons)]


def output_weights(study: Study, neurons: NeuronAxis) -> Step:
    """What neurons add to the residual as the final norm sees it: ``w_out (neuron, coordinate)``.

    For holding two models' against each other, see `confreg.compare`.
    """
    from confreg.effects import Written

    memory = study.budget.memory

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Written:
        return Written(study.two_tokens, *by_layer(neurons, *spans.bounds[neurons.name]), memory)

    return Step(
        weights_of_layers,
        over=(neurons,),
        along=(coordinate_axis(study.model.about.d_model),),
        unit=unit,
        cost=lambda spans: 0,
        name="output weights",
        gives=(Variable("w_out", (neurons.name, "coordinate"), "output weight"),),
    )


def coordinate_axis(width: int, kept: bool = True) -> Axis:
    """Coordinates of the residual stream, as the axis ``coordinate``."""
    label = Label(np.arange(width, dtype=np.int32), "coordinate of the residual", kind="other")
    return Axis("coordinate", {"coordinate": label}, kept=kept)


def place_axis(study: Study, top: int) -> Axis:
    """Places of the tokens that are named, as the axis ``place``: no more than there are."""
    places = np.arange(min(top, int(study.model.about.owned.sum())), dtype=np.int32)
    label = Label(places, "place, the most extreme first", kind="other")
    return Axis("place", {"place": label})


def vocabulary_effort(study: Study, count: int) -> str:
    """What the cosines of so many directions with every token take, in words."""
    about = study.model.about
    work = 2 * about.d_model * int(about.owned.sum()) * count / 1e12
    said = f"{work:,.0f}" if work >= 10 else f"{work:.1g}" if work < 0.1 else f"{work:.1f}"
    return f"{said} TFLOP in products with the vocabulary"


def vocabulary_variables(subjects: Axis) -> tuple[Variable, ...]:
    """What `vocabulary_statistics` gives but for the tokens' texts."""
    n = (subjects.name,)
    return (
        Variable("vocab_mean", n, "mean over the vocabulary of cos(w_out, unembedding)"),
        Variable("logit_var", n, "variance over the vocabulary of cos(w_out, unembedding)"),
        Variable("vocab_skew", n, "skew over the vocabulary of cos(w_out, unembedding)"),
        Variable("vocab_kurtosis", n, "kurtosis over the vocabulary of cos(w_out, unembedding)"),
        Variable("raised", (*n, "place"), "id of a token raised most", "", "int64"),
        Variable("lowered", (*n, "place"), "id of a token lowered most", "", "int64"),
    )


def token_texts(study: Study, subjects: Axis) -> Derivation:
    """``raised_text`` and ``lowered_text``, along the subjects: the tokens as text."""
    n, tokenizer = (subjects.name,), study.model.about.tokenizer

    def texts(ds: xr.Dataset) -> dict[str, np.ndarray]:
        from confreg.tokens.pieces import piece_texts

        found = {}
        for name in ("raised", "lowered"):
            ids = ds[name].values
            known, where = np.unique(ids, return_inverse=True)
            quoted = [repr(text) for text in piece_texts(tokenizer, known.tolist())]
            where = where.reshape(ids.shape)
            found[f"{name}_text"] = np.array(
                [" ".join(quoted[i] for i in row) for row in where], dtype=object
            )
        return found

    return Derivation(
        texts,
        reads=("raised", "lowered"),
        gives=(
            Variable("raised_text", n, "tokens raised most", "", "str"),
            Variable("lowered_text", n, "tokens lowered most", "", "str"),
        ),
    )
