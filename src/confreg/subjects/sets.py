"""Sets of neurons that are ablated together: the chosen ones, and random ones as controls."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from confreg.axes import Axis, Label, Later
from confreg.errors import ConfregError
from confreg.models.banks import Bank
from confreg.subjects import matched
from confreg.subjects.matched import Drawn
from confreg.subjects.neurons import NeuronAxis, Neurons, choose, neuron_axis
from confreg.subjects.ways import Way

if TYPE_CHECKING:
    import xarray as xr

    from confreg.effects import Together
    from confreg.models import Description


ALIKE = ("set_control", "set_deviation", "set_clipped", "set_way")
"""Labels of the axis ``set`` that a chosen set shares with the controls it is held against, as far
as they are there."""


def controls(ds: xr.Dataset, entry: int) -> np.ndarray:
    """Which entries are controls of a chosen one, (n,) bool."""
    same = ds["set_kind"].values == "random"
    for name in ALIKE:
        if name in ds.coords:
            way = ds[name].values
            same = same & (way == way[entry])
    return same


def controls_of(ds: xr.Dataset) -> Iterator[tuple[int, np.ndarray]]:
    """Every chosen entry, by number, and its `controls`."""
    for entry in np.flatnonzero(ds["set_kind"].values == "chosen").tolist():
        yield entry, controls(ds, entry)


@dataclass(frozen=True)
class Sets:
    """Sets of neurons of one layer, each ablated to one value a neuron.

    Attributes
    ----------
    members : list of ndarray (k,)
        Indices in the layer of each set's neurons.
    layer : ndarray (n,)
        The same layer for all.
    labels, kind : ndarray (n,) object
        ``kind`` is "chosen" or "random".
    control : ndarray (n,)
        A number that chosen sets and their controls share.
    deviation : ndarray (n,)
        k of the ablation value mean + k·σ.
    clipped : ndarray (n,) bool
        Whether activations are replaced only where a repeat pushes them to.
    gap : ndarray (n,)
        How far the norms of a random set's neurons are from those that they stand for, as of
        `Drawn`; 0 of chosen sets, NaN where norms play no part.
    banks : sequence of Bank
        As of `Neurons`.
    ways : tuple of Way
        What each is fixed to, where that is not mean + k·σ.
    """

    members: list[np.ndarray]
    layer: np.ndarray
    labels: np.ndarray
    kind: np.ndarray
    control: np.ndarray
    deviation: np.ndarray
    clipped: np.ndarray
    gap: np.ndarray
    banks: Sequence[Bank] = ()
    ways: tuple[Way, ...] = ()

    def __len__(self) -> int:
        return len(self.members)

    @property
    def layers(self) -> list[int]:
        """The layers they are in: one."""
        return sorted(set(self.layer.tolist()))

    @property
    def neurons(self) -> Neurons:
        """Every neuron that is in a set."""
        index = np.unique(np.concatenate(self.members))
        return Neurons(np.full_like(index, self.layer[0]), index, self.banks)

    def describe(self) -> str:
        """How many, in words."""
        chosen = int((self.kind == "chosen").sum())
        if self.ways:
            named = list(dict.fromkeys(way.label for way in self.ways))
            some, others = (n // len(named) for n in (chosen, len(self) - chosen))
            return f"{some:,} chosen and {others:,} random, each at {', '.join(named)}"
        values = ", ".join(f"{k:+g}" for k in sorted(set(self.deviation.tolist())))
        way = f"at mean + k·σ for k = {values}"
        if self.clipped.any():
            way = "at the mean, half of them clipped"
        return f"{chosen:,} chosen and {len(self) - chosen:,} random, {way}"


@dataclass(frozen=True, eq=False)
class SetAxis(Axis):
    """The axis ``set``: sets of neurons of one layer, chosen ones and random controls.

    Attributes
    ----------
    sets : Sets
    neurons : NeuronAxis
        Every neuron that is in a set.
    """

    sets: Sets = field(default=None)  # type: ignore[assignment]
    neurons: NeuronAxis = field(default=None)  # type: ignore[assignment]

    @property
    def layers(self) -> list[int]:
        """The layers that they are in: one."""
        return self.neurons.layers

    def settle(self, start: int, stop: int, stored: Mapping[str, np.ndarray]) -> Together:
        """A span of them, each neuron replaced by its mean + k·σ, or clipped at its mean."""
        import torch

        from confreg.effects import Together

        sets, index = self.sets, self.neurons.neurons.index
        chosen = sets.members[start:stop]
        where = [np.searchsorted(index, members) for members in chosen]
        if sets.ways:
            return self._fixed(chosen, where, sets.ways[start:stop], stored)
        mean = stored["ablation_value"]
        values = [mean[at] for at in where]
        if "activation_deviation" in stored:
            sigma, ks = stored["activation_deviation"], sets.deviation[start:stop]
            values = [(mean[at] + k * sigma[at]).astype(np.float32) for at, k in zip(where, ks)]
        sides = None
        if sets.clipped.any():
            up = np.where(stored["mean_second"] >= stored["mean_first"], 1, -1)
            ways = sets.clipped[start:stop]
            # Where an expert's neuron is at one occurrence only it is not known which way.
            known = np.isfinite(stored["mean_second"] + stored["mean_first"])
            values = [
                np.where(known[at] | ~c, v, np.nan).astype(np.float32)
                for v, c, at in zip(values, ways, where)
            ]
            sides = [torch.from_numpy((c * up[at]).astype(np.int8)) for at, c in zip(where, ways)]
        return Together(
            [torch.from_numpy(members) for members in chosen],
            [torch.from_numpy(each) for each in values],
            sides,
        )

    def _fixed(
        self,
        chosen: list[np.ndarray],
        where: list[np.ndarray],
        ways: tuple[Way, ...],
        stored: Mapping[str, np.ndarray],
    ) -> Together:
        """Sets fixed to the values of their ways."""
        import torch

        from confreg.effects import Together

        return Together(
            [torch.from_numpy(members) for members in chosen],
            [torch.from_numpy(way.value(stored, at)) for way, at in zip(ways, where)],
            slopes=[way.slope for way in ways],
        )


@dataclass(frozen=True, eq=False)
class LaterSets(Later):
    """The axis ``set`` where controls are like the chosen in ‖w_out‖, which the model has to say.

    Attributes
    ----------
    neurons : NeuronAxis
        The whole layer: of which of them the controls are is not known yet.
    """

    neurons: NeuronAxis = field(default=None)  # type: ignore[assignment]


def sets_like(draw: Callable[[np.ndarray | None], Sets], width: int) -> LaterSets:
    """Sets whose controls are known once ``w_out_norm`` of the layer is stored.

    Parameters
    ----------
    draw : callable
        ``draw(norms)``: the sets, by the norms (width,) of the layer's neurons.
    width : int
        Neurons of a layer, of the one that has most.
    """
    assumed = draw(None)
    which, banks = int(assumed.layer[0]), assumed.banks
    index = np.arange(banks[which].size if banks else width)
    layer = neuron_axis(Neurons(np.full_like(index, which), index, banks), width)

    def known(stored: Mapping[str, np.ndarray]) -> Axis:
        norms = stored["w_out_norm"]
        return set_axis(draw(norms), width, layer, norms)

    return LaterSets("set", known, set_axis(assumed, width, layer), layer)


def set_axis(
    sets: Sets, width: int, neurons: NeuronAxis | None = None, norms: np.ndarray | None = None
) -> SetAxis:
    """Sets as an axis.

    Parameters
    ----------
    sets : Sets
    width : int
        Neurons of a layer.
    neurons : NeuronAxis, optional
        Neurons of the layer, all members among them; by default the members.
    norms : ndarray (width,), optional
        ‖w_out‖, by which controls were drawn.
    """
    if neurons is None:
        neurons = neuron_axis(sets.neurons, width)
    index = neurons.neurons.index
    experts = bool(sets.banks) and sets.banks[int(sets.layer[0])].experts
    random = "a random control, drawn however often a text is routed to it"
    labels = {
        "set": Label(sets.labels, "neurons or attention heads that are ablated together"),
        "set_kind": Label(sets.kind, f"chosen, or {random if experts else 'a random control'}"),
        "set_control": Label(
            sets.control.astype(np.int32), "number that chosen sets and their controls share"
        ),
        "set_deviation": Label(sets.deviation, "k of the ablation values mean + k·σ", "1"),
        "set_size": Label(
            np.array([len(m) for m in sets.members], dtype=np.int32),
            "how many neurons or attention heads it has",
        ),
        "member": Label(
            np.stack([np.isin(index, m) for m in sets.members]),
            "whether the neuron is in the set",
            dims=("set", "neuron"),
        ),
    }
    if sets.clipped.any():
        labels["set_clipped"] = Label(
            sets.clipped, "whether replaced only on the side that the repeat moves it to"
        )
    if sets.ways:
        del labels["set_deviation"]
        names = np.array([way.label for way in sets.ways], dtype=object)
        labels["set_way"] = Label(names, "what its neurons are fixed to")
    if norms is not None:
        mean = np.array([norms[m].mean() for m in sets.members], dtype=np.float32)
        text = "mean |log norm ratio| between its neurons and the chosen ones that they stand for"
        labels["set_norm"] = Label(mean, "mean norm of its neurons' output weights", "1")
        labels["set_norm_gap"] = Label(sets.gap.astype(np.float32), text, "1")

    def entries(start: int, stop: int) -> Together:
        import torch

        from confreg.effects import Together

        members = [torch.from_numpy(m) for m in sets.members[start:stop]]
        return Together(members, [torch.zeros(len(m)) for m in members])

    return SetAxis(
        "set", labels, entries, together=sets.layer, says=sets.describe(), sets=sets,
        neurons=neurons,
    )  # fmt: skip


def against_controls(
    spec: str,
    layer: int,
    model: Description,
    seed: int,
    random_sets: int,
    deviations: str,
    norms: np.ndarray | None = None,
) -> Sets:
    """Chosen sets and their random controls, each at every ablation value.

    Parameters
    ----------
    spec : str
        Sets separated by ``;``, each in the grammar of `confreg.subjects.neurons`.
    layer : int
        What ``random:N`` means.
    model : Description
    seed : int
    random_sets : int
        How many controls a chosen set has.
    deviations : str
        The k of the ablation values mean + k·σ, separated by commas.
    norms : ndarray (n_neurons,), optional
        ‖w_out‖ of the layer's neurons, in which controls are to be like the chosen.

    Raises
    ------
    ConfregError
        A set that is the whole layer, or of several layers, or leaves too few others.
    """
    rng = np.random.default_rng(seed)
    chosen = _chosen(spec, layer, model, seed)
    width = model.width(int(chosen[0].layer[0]))
    rows: list[_Row] = []
    for number, part in enumerate(chosen):
        # Controls hold none of the set's own neurons.
        drawn = _draw(rng, width, part.index, part.index, len(part), random_sets, norms)
        for k in _deviations(deviations):
            at = f":{k:+g}σ" if k else ""
            rows.append(_Row(part.index, f"chosen-{number}{at}", "chosen", number, k))
            rows += [
                _Row(one.members, f"random-{number}.{i}{at}", "random", number, k, gap=one.gap)
                for i, one in enumerate(drawn)
            ]
    return _sets(rows, chosen[0].layer[0], chosen[0].banks)


def alone_and_joint(
    spec: str,
    layer: int,
    model: Description,
    seed: int,
    random_sets: int,
    norms: np.ndarray | None = None,
) -> Sets:
    """Chosen neurons, each alone and each set jointly, and random controls: plain and clipped.

    Parameters
    ----------
    spec, layer, model, seed
        As of `against_controls`.
    random_sets : int
        How many random neurons, and how many random sets of the size of each chosen one, there
        are. None holds a chosen neuron.
    norms : ndarray (n_neurons,), optional
        As of `against_controls`.

    Raises
    ------
    ConfregError
        As `against_controls`.
    """
    rng = np.random.default_rng(seed)
    chosen = _chosen(spec, layer, model, seed)
    layer, count = int(chosen[0].layer[0]), random_sets
    width = model.width(layer)
    every = np.unique(np.concatenate([part.index for part in chosen]))
    names = Neurons(np.full_like(every, layer), every, chosen[0].banks).names
    joint = [part.index for part in chosen if len(part) > 1]
    families = [
        [(every[i : i + 1], str(names[i])) for i in range(len(every))],
        *([(members, f"joint-{number}")] for number, members in enumerate(joint)),
    ]
    rows: list[_Row] = []
    for number, family in enumerate(families):
        size = len(family[0][0])
        like = every if size == 1 else family[0][0]
        drawn = _draw(rng, width, every, like, size, count, norms)
        for clipped in (False, True):
            at = ":clipped" if clipped else ""
            rows += [_Row(m, label + at, "chosen", number, 0.0, clipped) for m, label in family]
            rows += [
                _Row(
                    one.members, f"random-{number}.{i}{at}", "random", number, 0.0, clipped, one.gap
                )
                for i, one in enumerate(drawn)
            ]
    return _sets(rows, layer, chosen[0].banks)


def fixed(
    spec: str,
    layer: int,
    model: Description,
    seed: int,
    random_sets: int,
    ways: Sequence[Way],
    norms: np.ndarray | None = None,
) -> Sets:
    """Chosen sets and their random controls, each fixed in every way.

    Parameters
    ----------
    spec, layer, model, seed, norms
        As of `against_controls`.
    random_sets : int
        How many controls a chosen set has. None holds a neuron of any chosen set.
    ways : sequence of Way

    Raises
    ------
    ConfregError
        As `against_controls`.
    """
    rng = np.random.default_rng(seed)
    chosen = _chosen(spec, layer, model, seed)
    every = np.unique(np.concatenate([part.index for part in chosen]))
    width = model.width(int(chosen[0].layer[0]))
    rows: list[_Row] = []
    # The ways of a set stand side by side: what it writes is found once for all of them.
    for number, part in enumerate(chosen):
        drawn = _draw(rng, width, every, part.index, len(part), random_sets, norms)
        found = [(part.index, f"chosen-{number}", "chosen", 0.0)]
        found += [(m, f"random-{number}.{i}", "random", gap) for i, (m, gap) in enumerate(drawn)]
        rows += [
            _Row(members, f"{label}:{way.label}", kind, number, math.nan, gap=gap)
            for members, label, kind, gap in found
            for way in ways
        ]
    sets = _sets(rows, int(chosen[0].layer[0]), chosen[0].banks)
    return replace(sets, ways=tuple(ways) * (len(rows) // len(ways)))


class _Row(NamedTuple):
    """One of the `Sets`."""

    members: np.ndarray
    label: str
    kind: str
    control: int
    deviation: float
    clipped: bool = False
    gap: float = 0.0


def _sets(rows: list[_Row], layer: int, banks: Sequence[Bank]) -> Sets:
    members, labels, kind, control, deviation, clipped, gap = zip(*rows)
    return Sets(
        members=list(members),
        layer=np.full(len(rows), layer),
        labels=np.array(labels, dtype=object),
        kind=np.array(kind, dtype=object),
        control=np.array(control),
        deviation=np.array(deviation, dtype=np.float32),
        clipped=np.array(clipped),
        gap=np.array(gap),
        banks=banks,
    )


def _chosen(spec: str, layer: int, model: Description, seed: int) -> list[Neurons]:
    """The sets that a specification names, all of one layer."""
    if spec == "all":
        raise ConfregError(
            "This recipe ablates sets of neurons: name them with --neurons, for instance "
            f"{model.n_layers - 1}.5,{model.n_layers - 1}.7 (';' separates sets)."
        )
    chosen = [
        choose(
            part,
            layer,
            model.n_layers,
            model.n_neurons,
            [seed, number] if number else seed,  # random neurons of another set are others
            model.banks,
        )
        for number, part in enumerate(spec.split(";"))
    ]
    layers = sorted({layer for part in chosen for layer in part.layers})
    if len(layers) > 1:
        raise ConfregError(
            f"The sets {spec!r} are of layers {layers}: sets of one run are of one layer."
        )
    return chosen


def _draw(
    rng: np.random.Generator,
    width: int,
    without: np.ndarray,
    like: np.ndarray,
    size: int,
    count: int,
    norms: np.ndarray | None,
) -> list[Drawn]:
    """``count`` random sets of ``size`` of a layer's ``width`` neurons, no two alike.

    They hold none of those in ``without``. With ``norms`` they are like the neurons ``like``.
    """
    others = np.setdiff1d(np.arange(width), without)
    if len(others) < size or math.comb(len(others), size) < count:
        raise ConfregError(
            f"{len(without)} chosen of the layer's {width} neurons leave too few for "
            f"{count} random sets of {size}: name fewer with --neurons, or lower random_sets."
        )
    if norms is not None and size == 1:
        return matched.neurons(norms, others, like, count)
    if norms is not None:
        return matched.sets(rng, norms, others, like, count)
    drawn: dict[tuple[int, ...], Drawn] = {}
    while len(drawn) < count:
        members = np.sort(rng.choice(others, size, replace=False))
        drawn.setdefault(tuple(members.tolist()), Drawn(members))
    return list(drawn.values())


def _deviations(text: str) -> list[float]:
    number = r"\s*[-+]?[0-9]{1,9}(\.[0-9]+)?\s*"
    if not re.fullmatch(rf"{number}(,{number})*", text):
        raise ConfregError(f"deviations={text!r} is not a list of numbers such as -1,0,1.")
    return list(dict.fromkeys(float(k) for k in text.split(",")))
