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
    weights,
    weights_of_layers,
)
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis


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
        chosen = [
            torch.from_numpy(neurons.neurons.index[neurons.layer == layer].copy())
            for layer in neurons.layers
        ]
        return NullSpace(
            study.two_tokens, neurons.layers, chosen, torch.from_numpy(model.owned), null_dims,
            memory, centre_vocabulary,
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
    owned = model.owned
    top = min(top, int(owned.sum()))
    place = Axis(
        "place",
        {"place": Label(np.arange(top, dtype=np.int32), "place, the most extreme first",
                        kind="other")},
    )  # fmt: skip

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Vocabulary:
        start, stop = spans.bounds[neurons.name]
        index = torch.from_numpy(neurons.neurons.index[start:stop].copy())
        return Vocabulary(
            study.two_tokens, int(neurons.layer[start]), index, torch.from_numpy(owned), memory,
            centre_vocabulary, top,
        )  # fmt: skip

    n = (neurons.name,)
    step = Step(
        weights,
        over=(neurons,),
        along=(place,),
        unit=unit,
        cost=lambda spans: 0,
        name="moments over the vocabulary",
        gives=(
            Variable("vocab_mean", n, "mean over the vocabulary of cos(w_out, unembedding)"),
            Variable("logit_var", n, "variance over the vocabulary of cos(w_out, unembedding)"),
            Variable("vocab_skew", n, "skew over the vocabulary of cos(w_out, unembedding)"),
            Variable(
                "vocab_kurtosis", n, "kurtosis over the vocabulary of cos(w_out, unembedding)"
            ),
            Variable("raised", (*n, "place"), "id of a token raised most", "", "int64"),
            Variable("lowered", (*n, "place"), "id of a token lowered most", "", "int64"),
        ),
    )

    def token_texts(ds: xr.Dataset) -> dict[str, np.ndarray]:
        from confreg.tokens.pieces import piece_texts

        found = {}
        for name in ("raised", "lowered"):
            ids = ds[name].values
            known, where = np.unique(ids, return_inverse=True)
            texts = [repr(text) for text in piece_texts(model.tokenizer, known.tolist())]
            where = where.reshape(ids.shape)
            found[f"{name}_text"] = np.array(
                [" ".join(texts[i] for i in row) for row in where], dtype=object
            )
        return found

    named = Derivation(
        token_texts,
        reads=("raised", "lowered"),
        gives=(
            Variable("raised_text", n, "tokens raised most", "", "str"),
            Variable("lowered_text", n, "tokens lowered most", "", "str"),
        ),
    )
    return [step, named]
