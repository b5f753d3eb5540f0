"""What neurons do over a text: their activations kept, or moments and extremes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np

from confreg.axes import Axis, Label, Spans, Variable
from confreg.derive.matching import Powers
from confreg.effects import pick
from confreg.errors import ConfregError
from confreg.steps.matching import MOMENTS, WORDS
from confreg.steps.values import activation_unit, read_activations, refuse_experts
from confreg.sweep.budget import Budget
from confreg.sweep.layout import cut
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from confreg.effects import Tokens
    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis
    from confreg.tokens.axis import Text

HALF = "float16"
SAID = {
    "float32": "activation of the neuron",
    HALF: "activation of the neuron, rounded to float16: within 1/2048 of its size, or 3e-8",
}


def kept(study: Study, neuron: str = "neuron") -> Variable:
    """The variable ``activation``, of the type that ``--dtype-on-disk`` names."""
    dtype = study.options.dtype_on_disk
    routed = "; of experts' neurons times the routing weight, NaN where a token is not routed there"
    said = SAID[dtype] + routed * (study.model.about.n_experts > 1)
    return Variable("activation", (neuron, "token"), said, dtype=dtype)


def activations(study: Study, neurons: NeuronAxis, tokens: Text) -> Step:
    """Keep the activation of every neuron at every token: ``activation (neuron, token)``.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    tokens : Text
    """

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Any:
        return activation_unit(neurons, tokens, spans, {})

    return Step(read, over=(neurons, tokens), gives=(kept(study, neurons.name),), unit=unit,
                name="activations")  # fmt: skip


def read(model: Any, unit: Any) -> dict[str, Any]:
    """Activations to be kept."""
    return {"activation": read_activations(model, unit)}


def activation_statistics(
    study: Study, neurons: NeuronAxis, text: Text, top: int = 10
) -> list[Item]:
    """Moments of activations over kept tokens, and the tokens of the largest and the smallest.

    Gives ``activation_mean``, ``_deviation``, ``_skew`` (E[z³]), ``_kurtosis`` (E[z⁴]; a Gaussian
    has 3) and ``_frequency`` (share above 0) over ``neuron``, float64; ``preactivation_frequency``,
    the same of what the activation function is applied to (of a gated MLP the gate's output), where
    the model's row says which matrix that is; and over ``neuron`` and
    ``extreme`` the activations ``highest`` and ``lowest``, ``highest_token`` and ``lowest_token``,
    places along ``token``, and what those read as, ``highest_text`` and ``lowest_text``.

    Nothing is kept of other tokens. Central moments of blocks of tokens are merged in float64, with
    no bins and nothing clipped. A unit reads the whole text, for some neurons of a layer.

    Parameters
    ----------
    study : Study
    neurons : NeuronAxis
    text : Text
    top : int
        How many tokens either way.

    Raises
    ------
    ConfregError
        ``top`` is none of 1 to the number of kept tokens, or the model has experts.
    """
    if not 1 <= top <= int(text.keep.sum()):
        raise ConfregError(f"top is from 1 to {int(text.keep.sum())}, the kept tokens, not {top}.")
    refuse_experts(
        study.model,
        "moments over all of them say little. Keep what there is with --activations.",
    )
    # Cut into blocks by the trace: one unit is the whole text, since extremes do not add up.
    tokens = replace(text, together=None)
    cuts = cut(text, study.budget.tokens)
    blocks = [text.entries(*span) for span in cuts]
    places = [np.arange(*span)[text.keep[slice(*span)]] for span in cuts]
    extreme = Axis(
        "extreme",
        {"extreme": Label(np.arange(top), "rank among the largest or smallest", kind="other")},
    )

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Unit:
        start, stop = spans.bounds[neurons.name]
        index = neurons.neurons.index[start:stop].copy()
        return Unit(blocks, places, int(neurons.layer[start]), index, top)

    def most(budget: Budget) -> dict[str, int]:
        # Blocks in float64, their powers, and what is sorted.
        each = 48 * max(len(block) for block in blocks) + 64 * top
        return {tokens.name: len(tokens), neurons.name: max(budget.memory // (2 * each), 1)}

    n, both = (neurons.name,), (neurons.name, "extreme")
    before = Variable(
        "preactivation_frequency", n, "share of kept tokens at which what the activation function "
        "is applied to is above 0", "1", "float64", kept=bool(study.model.about.row.up),
    )  # fmt: skip
    step = Step(
        statistics,
        over=(neurons, tokens),
        along=(extreme,),
        unit=unit,
        most=most,
        uncut=(tokens.name,),
        name="moments of activations",
        gives=(
            before,
            *(
                Variable(f"activation_{moment}", n, words, "1", "float64")
                for moment, words in zip(MOMENTS, WORDS)
            ),
            *(Variable(way, both, f"{way} activations over kept tokens") for way in WAYS),
            *(
                Variable(f"{way}_token", both, f"tokens of the {way} activations, places along the "
                         "text", "", "int64")
                for way in WAYS
            ),
        ),
    )  # fmt: skip

    def texts(ds: xr.Dataset) -> dict[str, np.ndarray]:
        read = np.asarray(text.table.text)
        return {f"{way}_text": read[ds[f"{way}_token"].values] for way in WAYS}

    named = Derivation(
        texts,
        reads=tuple(f"{way}_token" for way in WAYS),
        gives=tuple(
            Variable(f"{way}_text", both, f"what the tokens of the {way} activations read as", "",
                     "str")
            for way in WAYS
        ),
    )  # fmt: skip
    return [step, named]


WAYS = ("highest", "lowest")


class Unit:
    """What a unit carries: text in blocks, where its kept tokens are, and neurons of a layer."""

    def __init__(
        self,
        blocks: list[Tokens],
        places: list[np.ndarray],
        layer: int,
        index: np.ndarray,
        top: int,
    ) -> None:
        import torch

        self.blocks, self.layer, self.top = blocks, layer, top
        self.places = [torch.from_numpy(each) for each in places]
        self.index = torch.from_numpy(index)


def seen(model: Any, tokens: Tokens, unit: Unit) -> list[torch.Tensor]:
    """At kept tokens, (T, n): what the activation function is given, if known, and activations."""
    site = model.site(unit.layer)
    inputs = [model.inputs(unit.layer)] if model.description.row.up else []
    kept, index = tokens.positions[tokens.keep], unit.index
    with model.trace(tokens.inputs) as tracer:
        found = nnsight.save([])
        for each in inputs:
            found.append(pick(each.before(), kept, index))
        found.append(pick(site.neurons.input, kept, index))
        tracer.stop()
    return found


def statistics(model: Any, unit: Unit) -> dict[str, Any]:
    """Read the text block by block, and keep of it moments and extremes."""
    import torch

    powers, found = Powers(), {way: Extremes(unit.top, way == "highest") for way in WAYS}
    above = torch.zeros(len(unit.index), dtype=torch.int64)
    for tokens, places in zip(unit.blocks, unit.places):
        if not len(places):
            continue
        *before, block = (part.float() for part in seen(model, tokens, unit))
        wrong = int((~torch.isfinite(block)).sum())
        if wrong:
            raise ConfregError(
                f"{wrong:,} of {block.numel():,} activations of layer {unit.layer} are no finite "
                "numbers. Try another --dtype."
            )
        powers.add(block)
        for part in before:
            above += (part > 0).sum(0).cpu()
        for each in found.values():
            each.add(block, places.to(block.device))
    block = {name: values.cpu().numpy() for name, values in powers.moments().items()}
    block["preactivation_frequency"] = above.cpu().double().numpy() / powers.count
    for way, each in found.items():
        block[way], block[f"{way}_token"] = each.values.T.cpu().numpy(), each.at.T.cpu().numpy()
    return block


class Extremes:
    """The largest or smallest values of each column so far, and where; earlier ones come first."""

    def __init__(self, top: int, largest: bool) -> None:
        self.top, self.sign = top, 1.0 if largest else -1.0
        self._values: torch.Tensor | None = None

    def add(self, block: torch.Tensor, places: torch.Tensor) -> None:
        """Add a block of tokens, (T, n), which stand at ``places`` (T,)."""
        import torch

        values, at = self.sign * block, places[:, None].expand_as(block)
        if self._values is not None:
            values, at = torch.cat([self._values, values]), torch.cat([self.at, at])
        order = values.sort(dim=0, descending=True, stable=True).indices[: self.top]
        self._values, self.at = values.gather(0, order), at.gather(0, order)

    @property
    def values(self) -> torch.Tensor:
        """The values, (top, n)."""
        assert self._values is not None
        return self.sign * self._values
