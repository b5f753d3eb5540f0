"""What an activation is replaced by: the grammar of ``ablation``, and the steps that find it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import nnsight
import numpy as np

from confreg import earlier
from confreg.axes import Spans, Variable
from confreg.errors import ConfregError
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.models.network import Network
    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis
    from confreg.sweep.budget import Budget
    from confreg.tokens.axis import Text

GRAMMAR = "mean | zero | p5 (a percentile, 0 to 100) | a number"


@dataclass(frozen=True)
class Ablation:
    """A kind of ablation value.

    Attributes
    ----------
    kind : {"mean", "percentile", "constant"}
    value : float
        The percentile (0 to 100) or the constant; unused for the mean.
    """

    kind: Literal["mean", "percentile", "constant"]
    value: float = 0.0

    @property
    def over_tokens(self) -> bool:
        """Whether the value depends on the corpus."""
        return self.kind != "constant"


def read(ablation: str | float) -> Ablation:
    """Read an ablation.

    Raises
    ------
    ConfregError
        Not in the grammar.
    """
    text = str(ablation).strip().lower()
    if text == "mean":
        return Ablation("mean")
    if text == "zero":
        return Ablation("constant", 0.0)
    if match := re.fullmatch(r"p([0-9]{1,3}(?:\.[0-9]+)?)", text):
        percentile = float(match[1])
        if percentile <= 100:
            return Ablation("percentile", percentile)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfregError(f"ablation={ablation!r} is not understood. Write {GRAMMAR}.")
    return Ablation("constant", number)


VALUE = Variable("ablation_value", ("neuron",), "value that replaces the activation")
DEVIATION = Variable(
    "activation_deviation",
    ("neuron",),
    "standard deviation of the activation over the tokens of mean_over",
)


@dataclass(frozen=True, eq=False)
class Value:
    """What replaces activations.

    Attributes
    ----------
    ablation : Ablation
    over : ndarray (T,) bool, or None
        The tokens that a mean or a percentile is over; None where they are not among those at which
        effects are measured.
    items : list of Step or Derivation
        What finds ``ablation_value (neuron)``; needed unless the value is found in the pass that
        measures its effects.
    attributes : dict
        What a dataset says of it.
    """

    ablation: Ablation
    over: np.ndarray | None
    items: list[Item] = field(default_factory=list)
    attributes: Mapping[str, str | int] = field(default_factory=dict)


def ablation_value(
    study: Study,
    neurons: NeuronAxis,
    tokens: Text,
    ablation: float | str = "mean",
    *,
    over: str = "all",
    spread: bool = False,
    occurrences: bool = False,
    mean_from: str = "",
) -> Value:
    """What replaces the activations of some neurons.

    Parameters
    ----------
    study : Study
    neurons, tokens : Axis
    ablation : float or str
        See `GRAMMAR`.
    over : {"all", "kept", "first", "text"}
        Which tokens a mean or a percentile is over; ``"text"``: the kept ones of the run's text as
        it is, however ``tokens`` were made of it.
    spread : bool
        Find also ``activation_deviation (neuron)``, σ over the same tokens, token by token.
    occurrences : bool
        Find also ``mean_first`` and ``mean_second (neuron)``, over the compared tokens of the
        occurrences of a text that comes again.
    mean_from : str
        Where the mean is from, in place of the run's text: other text, named as ``--text`` is and
        cut as it is cut, or a finished store of the same model, whose ``ablation_value`` is taken.

    Raises
    ------
    ConfregError
        ``ablation`` is not understood, or is no mean that could be from elsewhere; a store of
        another model, of other neurons, or of other values than means.
    """
    found, elsewhere = read(ablation), over == "text" or bool(mean_from)
    if mean_from and found.kind != "mean":
        raise ConfregError(
            f"mean_from={mean_from!r} says where means are from, and ablation={ablation!r} is none."
        )
    if mean_from and earlier.is_store(mean_from):
        return _of_store(study, neurons, tokens, mean_from, spread, occurrences)
    where = study.sample(mean_from) if elsewhere else tokens
    if mean_from and over not in ("all", "kept"):
        over = "kept"  # of text that is no repeat
    mask = where.keep if over == "text" else where.over(over)
    said = {"ablation": str(ablation), "mean_over": over, "mean_over_tokens": int(mask.sum())}
    if mean_from:
        said |= from_text(mean_from, where)
    items: list[Item]
    if found.kind == "percentile":
        items = _percentile(neurons, where, found.value, mask)
    elif found.kind == "constant" and not (spread or occurrences):
        items = [_constant(neurons, found.value)]
    else:
        masks, others = {"activation": mask}, _occurrences(tokens) if occurrences else {}
        if elsewhere and others:
            items = _moments(study, neurons, tokens, others, False, found)
        else:
            items, masks = [], masks | others
        items = [*items, *_moments(study, neurons, where, masks, spread, found)]
    return Value(found, None if elsewhere else mask, items, said)


SAYS = {
    "mean_over": "mean_over",
    "mean_over_tokens": "mean_over_tokens",
    "corpus": "mean_from_corpus",
    "mean_from_corpus": "mean_from_corpus",
}
"""What a run says of its means, and what it is called where they are taken from it."""


def _of_store(
    study: Study, neurons: NeuronAxis, tokens: Text, path: str, spread: bool, occurrences: bool
) -> Value:
    """Means, and σ, that an earlier run found."""
    ds = earlier.of_model(path, study.model)
    wanted = [VALUE.name, *(["activation_deviation"] if spread else [])]
    for name in wanted:
        if name not in ds or ds[name].dims != ("neuron",):
            raise ConfregError(f"mean_from={path!r}: the store has no {name!r} of its neurons.")
    if ds.attrs.get("ablation") != "mean":
        raise ConfregError(
            f"mean_from={path!r}: that run ablated to {ds.attrs.get('ablation', 'nothing')!r}, not "
            "to means."
        )
    names = neurons.neurons.names
    at = ds["neuron"].to_index().get_indexer(names)
    if (at < 0).any():
        raise ConfregError(
            f"mean_from={path!r}: the store lacks {int((at < 0).sum())} of the {len(names):,} "
            f"neurons, {names[np.argmax(at < 0)]} for one."
        )
    found = {name: ds[name].values[at].astype(np.float32) for name in wanted}
    digest = hashlib.sha256(b"".join(values.tobytes() for values in found.values()))
    said: dict[str, Any] = {"ablation": "mean", "mean_from": path}
    said |= {own: ds.attrs[name] for name, own in SAYS.items() if name in ds.attrs}
    said["mean_from_sha256"] = digest.hexdigest()

    def means_from_store(_: xr.Dataset) -> dict[str, np.ndarray]:
        return found

    gives = (VALUE, *([DEVIATION] if spread else []))
    items: list[Item] = [Derivation(means_from_store, gives, along=(neurons,))]
    if occurrences:
        masks = _occurrences(tokens)
        items += _moments(study, neurons, tokens, masks, False, Ablation("mean"))
    return Value(Ablation("mean"), None, items, said)


def _occurrences(tokens: Text) -> dict[str, np.ndarray]:
    """The compared tokens of both occurrences of a text that comes again, (T,) bool each."""
    marks = tokens.table.marks
    return {
        name: marks["compared"] & (marks["occurrence"] == number)
        for number, name in enumerate(("first", "second"))
    }


def _constant(neurons: NeuronAxis, value: float) -> Derivation:
    def ablation_values(ds: xr.Dataset) -> dict[str, np.ndarray]:
        return {"ablation_value": np.full(len(neurons), value, dtype=np.float32)}

    return Derivation(ablation_values, (VALUE,), along=(neurons,))


def _moments(
    study: Study,
    neurons: NeuronAxis,
    tokens: Text,
    masks: Mapping[str, np.ndarray],
    spread: bool,
    ablation: Ablation,
) -> list[Item]:
    """Means over some tokens by name, and σ over those of ``activation``, from sums."""
    for name, mask in masks.items():
        if not mask.any():
            raise ConfregError(f"A mean over tokens ({name}) has no token to be over.")

    step = summing(neurons, tokens, masks, "ablation values")
    gives = [VALUE] if "activation" in masks else []
    if spread:
        gives.append(DEVIATION)
    for name in masks:
        if name != "activation":
            text = f"mean activation over the compared tokens of the {name} occurrence"
            gives.append(Variable(f"mean_{name}", ("neuron",), text))

    routed = study.model.about.n_experts > 1

    def ablation_values(ds: xr.Dataset) -> dict[str, Any]:
        means = {name: _mean(ds, name, mask, routed) for name, mask in masks.items()}
        found: dict[str, Any] = {f"mean_{name}": mean for name, mean in means.items()}
        mean = found.pop("mean_activation", None)
        if mean is None:
            return found
        constant = np.full(len(mean), ablation.value)
        found["ablation_value"] = mean if ablation.kind == "mean" else constant
        if spread:
            count = np.maximum(ds["activation_count"].values, 1)
            square = ds["activation_sum_of_squares"].values / count
            found["activation_deviation"] = np.sqrt(np.maximum(square - mean**2, 0))
        return found

    return [step, Derivation(ablation_values, tuple(gives))]


def summing(
    neurons: NeuronAxis,
    tokens: Text,
    masks: Mapping[str, np.ndarray],
    name: str,
    most: Callable[[Budget], Mapping[str, int]] | None = None,
) -> Step:
    """Sums of activations over the tokens of each mask, of their squares, and how many there are.

    Gives, hidden, ``{mask}_sum``, ``{mask}_sum_of_squares`` and ``{mask}_count (neuron)``.
    ``name`` and ``most`` are the step's.
    """

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Any:
        return activation_unit(neurons, tokens, spans, masks)

    added: Any = {"dtype": "float64", "added_over": (tokens.name,), "kept": False}
    sums = [
        Variable(f"{mask}_sum{power}", ("neuron",), "sum of the activation's powers", **added)
        for mask in masks
        for power in ("", "_of_squares")
    ]
    whole = added | {"dtype": "int64"}
    counts = [
        Variable(f"{mask}_count", ("neuron",), "tokens at which there is an activation", **whole)
        for mask in masks
    ]
    return Step(
        activation_sums, over=(neurons, tokens), gives=(*sums, *counts), unit=unit, most=most,
        name=name,
    )  # fmt: skip


def _mean(ds: xr.Dataset, name: str, mask: np.ndarray, routed: bool) -> np.ndarray:
    """Means over the tokens of a mask, (n,): NaN where a number is missing.

    Of experts' neurons, over those that are routed there: NaN where none is.
    """
    total, count = ds[f"{name}_sum"].values, ds[f"{name}_count"].values
    enough = count > 0 if routed else count == mask.sum()
    return np.where(enough, total / np.maximum(count, 1), np.nan)


def _percentile(
    neurons: NeuronAxis, tokens: Text, percentile: float, mask: np.ndarray
) -> list[Item]:
    """A percentile needs every activation."""
    step = every_activation(
        neurons, tokens,
        "A percentile over several requests would send every activation over the wire. "
        "Use ablation=mean or a number, or fewer --max-tokens so that one request holds them.",
    )  # fmt: skip

    def ablation_values(ds: xr.Dataset) -> dict[str, np.ndarray]:
        import torch

        from confreg import effects

        seen = torch.from_numpy(ds[SEEN].values.T[mask])
        every = torch.ones(len(seen), dtype=torch.bool)
        return {
            "ablation_value": effects.ablation_values(seen, "percentile", percentile, every).numpy()
        }

    derived = Derivation(ablation_values, (VALUE,), by=neurons.name, reads=(SEEN,))
    return [step, derived]


SEEN = "activation_seen"


def every_activation(neurons: NeuronAxis, tokens: Text, here_only: str) -> Step:
    """Every activation, as ``activation_seen (neuron, token)``, for derivations to read.

    ``here_only`` says why a server cannot do that, and what to do.
    """

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Any:
        return activation_unit(neurons, tokens, spans, {})

    dims = (neurons.name, tokens.name)
    return Step(
        activations,
        over=(neurons, tokens),
        gives=(Variable(SEEN, dims, "activation of the neuron", kept=False),),
        unit=unit,
        name="ablation values",
        here_only=here_only,
    )


def from_text(mean_from: str, text: Text) -> dict[str, str]:
    """What a dataset says of the other text that values are over."""
    table = text.table
    return {
        "mean_from": mean_from,
        "mean_from_corpus": table.corpus,
        "mean_from_sha256": table.corpus_hash,
    }


def refuse_experts(network: Network, because: str) -> None:
    """Refuse a model whose neurons are not there at every token.

    Raises
    ------
    ConfregError
        It has experts.
    """
    if network.about.n_experts > 1:
        raise ConfregError(
            f"{network.name} has experts, whose neurons are there at some tokens only: {because}"
        )


def activation_unit(
    neurons: NeuronAxis, tokens: Text, spans: Spans, masks: Mapping[str, np.ndarray]
) -> Any:
    """What a unit about activations carries: text, and which neurons at which tokens."""
    import torch

    from confreg.effects import Activations

    start, stop = spans.bounds[neurons.name]
    where = {
        name: torch.from_numpy(mask[spans[tokens.name]].copy()) for name, mask in masks.items()
    }
    index = torch.from_numpy(neurons.neurons.index[start:stop].copy())
    text = tokens.entries(*spans.bounds[tokens.name])
    return Activations(text, int(neurons.layer[start]), index, where)


def activation_sums(model: Any, unit: Any) -> dict[str, Any]:
    """Sums of activations and of their squares over some tokens, in one pass up to the layer."""
    site = model.site(unit.layer)
    with model.trace(unit.inputs) as tracer:
        found = nnsight.save(unit.sums(site.neurons.input))
        tracer.stop()
    return found


def activations(model: Any, unit: Any) -> dict[str, Any]:
    """Activations for derivations to read."""
    return {SEEN: read_activations(model, unit)}


def read_activations(model: Any, unit: Any) -> Any:
    """Activations of some neurons at some tokens, (n, T), in one pass up to the layer."""
    site = model.site(unit.layer)
    with model.trace(unit.inputs) as tracer:
        found = nnsight.save(unit.values(site.neurons.input))
        tracer.stop()
    return found
