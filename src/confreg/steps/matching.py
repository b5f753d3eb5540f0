"""Neurons of one model against those of others, as both read the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np
import torch

from confreg.axes import Axis, Label, Spans, Variable
from confreg.derive import matching
from confreg.effects import pick
from confreg.errors import ConfregError
from confreg.steps.values import refuse_experts
from confreg.sweep.budget import Budget
from confreg.sweep.layout import cut
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.effects import Tokens
    from confreg.models.network import Network
    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis
    from confreg.tokens.axis import Text

MOMENTS = ("mean", "deviation", "skew", "kurtosis", "frequency")


def matches(
    study: Study,
    neurons: NeuronAxis,
    others: Sequence[Network],
    *,
    layers: int | None = None,
    draws: int = 4,
    above: float = 0.5,
) -> list[Item]:
    """The neurons of other models that correlate best with each, and what chance would give.

    Gives what `confreg.derive.matching.reduced` returns, over ``neuron`` and ``other``;
    ``layer_correlation`` and ``layer_baseline (neuron, other_layer)``, the best of every layer and
    the mean over draws of the best of that layer rotated; ``chance_floor (other)``; and moments of
    the activations over kept tokens, ``activation_mean``, ``_deviation``, ``_skew``, ``_kurtosis``
    and ``_frequency (neuron)``.

    A unit reads the whole text, and keeps nothing of it but sums.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    others : sequence of Network
        Models that read the same tokens.
    layers : int, optional
        Match only layers within so many of the same relative depth; by default all.
    draws : int
        Rotations of every layer.
    above : float
        Excess correlation above which a neuron counts as universal.

    Raises
    ------
    ConfregError
        No other model, two of one name, other tokens, or experts, whose neurons are not there at
        every token.
    """
    text = study.tokens()
    # Cut into blocks by the trace: one unit is the whole text, since what it keeps does not add up.
    tokens = replace(text, together=None)
    check(study, others, text, layers, draws)
    abouts = [network.about for network in others]
    every = matching.Layers.of([about.n_layers for about in abouts], layers)
    along = other_layers([network.name for network in others], every)
    names = Axis("other", {"other": Label([n.name for n in others], "model that is matched with")})
    about, seed, batch = study.model.about, study.seed, study.budget.tokens
    alike = [
        (each.n_layers, each.n_neurons) == (about.n_layers, about.n_neurons) for each in abouts
    ]
    blocks = [text.entries(*span) for span in cut(text, batch)]

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Unit:
        start, stop = spans.bounds[neurons.name]
        layer = int(neurons.layer[start])
        first, last = spans.bounds[along.name]
        model = int(every.model[first])
        index = neurons.neurons.index[start:stop].copy()
        wanted = every.like(layer, about.n_layers)[first:last]
        theirs = [
            (place, int(number)) if wanted[place] else None
            for place, number in enumerate(every.layer[first:last])
        ]
        own = {place: index for place, number in filter(None, theirs)
               if alike[model] and number == layer}  # fmt: skip
        return Unit(
            blocks, layer, index, model, [each for each in theirs if each], len(theirs), own, seed,
            draws,
        )  # fmt: skip

    def most(budget: Budget) -> dict[str, int]:
        return {
            tokens.name: len(tokens),
            **room(budget.memory, max(each.n_neurons for each in abouts), along, layers),
        }

    def cost(spans: Spans) -> float:
        start, (first, last) = spans.bounds[neurons.name][0], spans.bounds[along.name]
        some = every.like(int(neurons.layer[start]), about.n_layers)[first:last].any()
        return 2.0 if some or first == 0 else 0.0

    n, cross = (neurons.name,), (neurons.name, along.name)
    step = Step(
        correlate,
        over=(neurons, along, tokens),
        along=(Axis("draw", {"draw": Label(np.arange(draws), "draw of a rotation", kind="other")},
                    kept=False),),
        models=(study.model, *others),
        unit=unit,
        most=most,
        cost=cost,
        uncut=(tokens.name,),
        name="correlations with the other models' neurons",
        gives=(
            Variable("layer_correlation", cross, "largest correlation with a neuron of the layer"),
            Variable("layer_index", cross, "neuron of that correlation", "", "int64", kept=False),
            Variable("layer_same", cross, "correlation of the same index", kept=False),
            Variable("layer_drawn", (*cross, "draw"), "largest with the rotated layer", kept=False),
            *(Variable(f"activation_{moment}", n, text, "1", "float64")
              for moment, text in zip(MOMENTS, WORDS)),
        ),
    )  # fmt: skip
    kept, reach = int(text.keep.sum()), every.reach(neurons.layers, about.n_layers)
    floors = np.array(
        [matching.chance(int(n) * each.n_neurons, kept) for n, each in zip(reach, abouts)]
    )
    return [step, _best(neurons, names, along, every, above, floors)]


WORDS = (
    "mean activation over kept tokens",
    "standard deviation of the activation over kept tokens",
    "skew E[z³] of the activation over kept tokens",
    "kurtosis E[z⁴] of the activation over kept tokens; a Gaussian has 3",
    "share of kept tokens at which the activation is above 0",
)


def _best(
    neurons: NeuronAxis,
    names: Axis,
    along: Axis,
    every: matching.Layers,
    above: float,
    floors: np.ndarray,
) -> Derivation:
    def best_matches(ds: xr.Dataset) -> dict[str, Any]:
        found = {
            "correlation": ds["layer_correlation"].values.astype(np.float64),
            "index": ds["layer_index"].values,
            "baseline": ds["layer_drawn"].values.astype(np.float64),
            "same": ds["layer_same"].values,
        }
        return {
            **matching.reduced(every, found, above),
            "layer_baseline": found["baseline"].mean(-1),
            "chance_floor": floors,
        }

    return Derivation(
        best_matches,
        gives=variables(neurons.name, along.name),
        along=(names,),
        reads=("layer_correlation", "layer_index", "layer_drawn", "layer_same"),
    )


def variables(neuron: str, along: str) -> tuple[Variable, ...]:
    """What follows from the correlations with every layer."""
    n, both = (neuron,), (neuron, "other")
    return (
        Variable("match_correlation", both, "largest correlation with a neuron of the other model"),
        Variable("match_layer", both, "layer of that neuron, −1 if none", "", "int32"),
        Variable("match_index", both, "index of that neuron, −1 if none", "", "int32"),
        Variable("match_baseline", both, "the same with rotated layers, mean over draws"),
        Variable("match_baseline_spread", both, "standard deviation of that over draws"),
        Variable("same_correlation", both, "correlation with the neuron of the same index"),
        Variable("excess_correlation", n, "correlation beyond the baseline, mean over models"),
        Variable("correlation_mean", n, "largest correlation, mean over models"),
        Variable("correlation_min", n, "largest correlation, smallest over models"),
        Variable("universal", n, "whether the excess correlation is large", "", "bool"),
        Variable("layer_baseline", (neuron, along), "largest correlation with the rotated layer"),
        Variable("chance_floor", ("other",), "largest of as many correlations that are none"),
    )


class Unit:
    """What a unit carries: text in blocks, some neurons of a layer, and layers of another model.

    Parameters
    ----------
    blocks : list of Tokens
    layer : int
    index : ndarray (n,)
    model : int
        Which of the other models.
    theirs : list of (int, int)
        Places among the unit's layers, and the layers that are there.
    places : int
        Layers of the unit, those that are not to be matched too.
    same : dict of int to ndarray
        By place, the counterparts of the n neurons.
    seed, draws : int
    """

    def __init__(
        self,
        blocks: list[Tokens],
        layer: int,
        index: np.ndarray,
        model: int,
        theirs: list[tuple[int, int]],
        places: int,
        same: dict[int, np.ndarray],
        seed: int,
        draws: int,
    ) -> None:
        self.blocks, self.layer, self.index = blocks, layer, torch.from_numpy(index)
        self.model, self.theirs, self.places, self.same = model, theirs, places, same
        self.seed, self.draws = seed, draws


def correlate(models: Any, unit: Unit) -> dict[str, Any]:
    """Read the text with both models, block by block, and keep the best of every layer."""
    sums = {place: matching.Sums() for place, _ in unit.theirs}
    powers = matching.Powers()
    for tokens in unit.blocks:
        (mine,) = seen(models[0], tokens, [unit.layer])
        mine = mine.index_select(1, unit.index.to(mine.device))
        if not len(mine):
            continue
        powers.add(mine)
        if not sums:
            continue
        layers = [layer for _, layer in unit.theirs]
        for (place, _), theirs in zip(unit.theirs, seen(models[1 + unit.model], tokens, layers)):
            sums[place].add(mine, theirs)
    n = len(unit.index)
    found = {
        "layer_correlation": np.full((n, unit.places), np.nan),
        "layer_index": np.full((n, unit.places), -1),
        "layer_same": np.full((n, unit.places), np.nan),
        "layer_drawn": np.full((n, unit.places, unit.draws), np.nan),
        **{name: values.cpu().numpy() for name, values in powers.moments().items()},
    }
    for place, layer in unit.theirs:
        seeds = [(unit.seed, unit.model, layer, draw) for draw in range(unit.draws)]
        best = matching.of_layer(sums[place], unit.same.get(place), seeds)
        found["layer_correlation"][:, place] = best["correlation"]
        found["layer_index"][:, place] = best["index"]
        found["layer_same"][:, place] = best["same"]
        found["layer_drawn"][:, place] = best["baseline"]
    return found


def seen(model: Any, tokens: Tokens, layers: list[int]) -> list[torch.Tensor]:
    """Activations of whole layers at the kept tokens, (T, w) each, in one pass."""
    sites = [model.site(layer) for layer in layers]
    kept = tokens.positions[tokens.keep]
    every = torch.arange(model.description.n_neurons)
    with model.trace(tokens.inputs) as tracer:
        found = nnsight.save([])
        for site in sites:
            found.append(pick(site.neurons.input, kept, every))
        tracer.stop()
    return found


def room(memory: int, width: int, along: Axis, layers: int | None) -> dict[str, int]:
    """How many neurons and how many layers of another model a unit has, within half the memory.

    A layer takes two w × w matrices of float64, its covariance and a rotation's share of it, and
    each neuron with each layer 24 bytes a product: the sum, a block's and a rotated one.
    """
    square, each = 12 * width**2, 24 * width
    half = memory // 2
    if half < square + each:
        raise ConfregError(
            f"A layer of {width:,} neurons and its covariance take {2 * (square + each):,} bytes "
            f"beside the model; there are {memory:,}. Give more, --memory."
        )
    wanted = len(along) if layers is None else 2 * layers + 1
    together = max(min(wanted, (half // 2) // square), 1)
    left = half - together * square
    return {along.name: together, "neuron": max(left // (each * together), 1)}


def other_layers(names: Sequence[str], every: matching.Layers) -> Axis:
    """Layers of the other models as the axis ``other_layer``."""
    own = [names[model] for model in every.model]
    several = len(names) > 1
    values = [f"{name}:{layer}" if several else str(layer) for name, layer in zip(own, every.layer)]
    return Axis(
        "other_layer",
        {
            "other_layer": Label(values, "layer of another model", kind="subject"),
            "other_layer_model": Label(own, "model that the layer is of"),
            "other_layer_number": Label(
                every.layer.astype(np.int32), "layer in that model, from 0"
            ),
        },
        together=every.model,
    )


def check(
    study: Study, others: Sequence[Network], text: Text, layers: int | None, draws: int
) -> None:
    """Refuse models that cannot be matched.

    Raises
    ------
    ConfregError
        See `matches`.
    """
    if not others:
        raise ConfregError("Name at least one other model: -p other=MODEL[,MODEL].")
    if draws < 1:
        raise ConfregError(f"draws is at least 1, not {draws}.")
    if layers is not None and layers < 0:
        raise ConfregError(f"layers is at least 0, not {layers}.")
    names = [network.name for network in others]
    if len(set(names)) < len(names):
        raise ConfregError(f"{', '.join(names)}: a model is named twice.")
    for network in (study.model, *others):
        refuse_experts(network, "they have no correlation over all of them.")
    ids = np.unique(text.table.token_id).tolist()
    mine = study.model.about.tokenizer.convert_ids_to_tokens(ids)
    for network in others:
        theirs = network.about.tokenizer.convert_ids_to_tokens(ids)
        differ = [triple for triple in zip(ids, mine, theirs) if triple[1] != triple[2]]
        if differ:
            number, own, other = differ[0]
            raise ConfregError(
                f"{network.name} has other tokens than {study.model.name} (token {number} is "
                f"{other!r}, here {own!r}): choose models that share a tokenizer."
            )
        if ids[-1] >= network.about.vocab_size:
            raise ConfregError(
                f"The text has the token {ids[-1]}, and {network.name} has rows for "
                f"{network.about.vocab_size:,}: choose models that share a tokenizer."
            )
        length = network.about.max_length
        if length is not None and text.table.sequence_length > length:
            raise ConfregError(
                f"{network.name} has positions for {length} tokens; sequences of "
                f"{text.table.sequence_length} were asked for."
            )
