"""Attention heads that are ablated, one by one and together, and random ones as controls."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Axis, Label
from confreg.errors import ConfregError
from confreg.models.model import whole_layer
from confreg.subjects.neurons import Neurons

if TYPE_CHECKING:
    from confreg.effects import AttendFirst
    from confreg.models import Description

GRAMMAR = (
    "above:0.7 (heads whose prefix-matching score is larger) | top:3 (the highest scores) | "
    "5.1,7.2 (layer.head)"
)
ASSUMED = 3
"""Heads that a plan counts with before any is scored: as many as the paper found in GPT-2."""

Head = tuple[int, int]


@dataclass(frozen=True)
class HeadSets:
    """Sets of attention heads, and the neurons of one layer that are watched meanwhile.

    Attributes
    ----------
    members : list of ndarray (k, 2)
        Layer and index of each set's heads.
    neurons : Neurons
        Those that are watched.
    labels, kind : ndarray (n,) object
        ``kind`` is "chosen" or "random".
    control : ndarray (n,)
        The chosen set, by its number, of which a set is one or for which it is a control.
    assumed : bool
        Whether the heads only stand for ones that are not known before they are scored.
    """

    members: list[np.ndarray]
    neurons: Neurons
    labels: np.ndarray
    kind: np.ndarray
    control: np.ndarray
    assumed: bool = False

    def __len__(self) -> int:
        return len(self.members)

    @property
    def layer(self) -> np.ndarray:
        """The layer of the watched neurons, once a set."""
        return np.full(len(self), self.neurons.layer[0])

    @property
    def layers(self) -> list[int]:
        """The layers of the watched neurons: one."""
        return self.neurons.layers

    def describe(self) -> str:
        """How many, in words."""
        chosen = self.kind == "chosen"
        said = f"{chosen.sum():,} chosen and {len(self) - chosen.sum():,} random, of heads"
        if not self.assumed:
            return said
        single = sum(len(m) == 1 for m, mine in zip(self.members, chosen) if mine)
        return f"{said}; as if {single} heads were found: they are scored when it runs"


@dataclass(frozen=True, eq=False)
class HeadAxis(Axis):
    """The axis ``set``: sets of attention heads, chosen ones and random controls.

    Attributes
    ----------
    sets : HeadSets
    layers : list of int
        The layer of the neurons that are watched meanwhile.
    """

    sets: HeadSets = field(default=None)  # type: ignore[assignment]

    @property
    def layers(self) -> list[int]:
        """The layer of the neurons that are watched: one."""
        return self.sets.neurons.layers


def head_axis(sets: HeadSets, n_heads: int) -> HeadAxis:
    """Sets of heads as an axis."""
    labels = {
        "set": Label(sets.labels, "neurons or attention heads that are ablated together"),
        "set_kind": Label(sets.kind, "chosen, or a random control"),
        "set_control": Label(
            sets.control.astype(np.int32), "number that chosen sets and their controls share"
        ),
        "set_size": Label(
            np.array([len(m) for m in sets.members], dtype=np.int32),
            "how many neurons or attention heads it has",
        ),
        "set_heads": Label(
            np.array([_named(m) for m in sets.members], dtype=object),
            "its attention heads, as layer.head",
        ),
    }

    def entries(start: int, stop: int) -> AttendFirst:
        import torch

        from confreg.effects import AttendFirst

        return AttendFirst([torch.from_numpy(m) for m in sets.members[start:stop]], n_heads)

    return HeadAxis("set", labels, entries, says=sets.describe(), sets=sets)


def is_named(spec: str) -> bool:
    """Whether heads are given by name, so that nothing need be scored to find them."""
    return not re.match(r"\s*(above|top)\s*:", spec)


def choose(
    watched: Neurons,
    model: Description,
    seed: int,
    heads: str,
    random_sets: int,
    controls: str,
    scores: np.ndarray | None = None,
) -> HeadSets:
    """Every chosen head by itself, all of them together, and random controls of each.

    A control has as many heads as its chosen set, none of them chosen: of the same layers, or of
    any layer up to the watched one. Where there are fewer such sets than ``random_sets``, it is
    all of them.

    Parameters
    ----------
    watched : Neurons
        Of one layer; heads of later layers cannot change them and are not considered.
    model : Description
    seed : int
    heads : str
        See `GRAMMAR`.
    random_sets : int
        How many controls a chosen set has.
    controls : {"same", "any"}
        Of which layers.
    scores : ndarray (layers, heads), optional
        Prefix-matching scores.

    Raises
    ------
    ConfregError
        A model without heads that can be told apart, a head that does not exist or is out of
        reach, no head that scores enough, or no head left to draw controls from.
    """
    if not any(model.attends):
        raise ConfregError(
            f"{model.name} ({model.row.title}) has no heads that can be ablated: "
            f"{model.row.no_heads or 'no layer attends'}."
        )
    if len(watched.layers) > 1:
        raise ConfregError(
            f"Neurons of layers {watched.layers} were named: the neurons watched are of one layer."
        )
    last = watched.layers[0]
    named = _heads(heads, last, model, scores)
    chosen = [[head] for head in named] + ([sorted(named)] if len(named) > 1 else [])
    rng = np.random.default_rng(seed)
    rows: list[tuple[np.ndarray, str, str, int]] = []
    for number, members in enumerate(chosen):
        drawn = []
        if random_sets:
            pools = _pools(members, named, controls, _all_heads(model, last), last)
            drawn = _draw(rng, pools, random_sets)
        rows.append((np.array(members), _named(members), "chosen", number))
        rows += [
            (np.array(control), f"random-{number}.{i}", "random", number)
            for i, control in enumerate(drawn)
        ]
    found, labels, kind, control = zip(*rows)
    return HeadSets(
        members=list(found),
        neurons=watched,
        labels=np.array(labels, dtype=object),
        kind=np.array(kind, dtype=object),
        control=np.array(control),
        assumed=scores is None and not is_named(heads),
    )


def _heads(spec: str, last: int, model: Description, scores: np.ndarray | None) -> list[Head]:
    if is_named(spec):
        return list(dict.fromkeys(_head(part, last, model) for part in spec.split(",")))
    match = re.fullmatch(r"(above|top):([0-9]{1,9}(?:\.[0-9]+)?)", re.sub(r"\s", "", spec))
    if not match or (match[1] == "top" and ("." in match[2] or int(match[2]) == 0)):
        raise ConfregError(f"heads={spec!r} is not understood. Write {GRAMMAR}.")
    by, limit = match[1], float(match[2])
    every = _all_heads(model, last)
    if by == "top" and limit > len(every):
        raise ConfregError(f"heads={spec}: layers 0 to {last} have {len(every)} heads.")
    count = int(limit) if by == "top" else min(ASSUMED, len(every))
    if scores is None:
        return sorted(every, key=lambda head: (head[1], -head[0]))[:count]
    ranked = sorted(every, key=lambda head: (-scores[head], head))
    if by == "top":
        return ranked[:count]
    found = [head for head in ranked if scores[head] > limit]
    if not found:
        best = ", ".join(f"{a}.{b} ({scores[a, b]:.2f})" for a, b in ranked[:3])
        raise ConfregError(
            f"No head of layers 0 to {last} has a prefix-matching score above {limit:g}; the "
            f"highest are {best}. Lower it, or take heads=top:3."
        )
    return found


def _all_heads(model: Description, last: int) -> list[Head]:
    """The heads of every layer up to ``last`` that has any."""
    layers = [layer for layer in range(last + 1) if model.attends[layer]]
    return [(layer, head) for layer in layers for head in range(model.n_heads)]


def _head(part: str, last: int, model: Description) -> Head:
    match = re.fullmatch(r"\s*(-?[0-9]{1,9})\.([0-9]{1,9})\s*", part)
    if not match:
        raise ConfregError(f"heads={part!r} is not understood. Write {GRAMMAR}.")
    try:
        layer, head = whole_layer(int(match[1]), model.n_layers), int(match[2])
    except ConfregError as error:
        raise ConfregError(f"heads={part.strip()}: {error}") from None
    if head >= model.n_heads:
        raise ConfregError(
            f"heads={part.strip()}: there is no such head; a layer of {model.name} has query heads "
            f"0 to {model.n_heads - 1}."
        )
    if not model.attends[layer]:
        others = ", ".join(str(i) for i, attends in enumerate(model.attends) if attends)
        raise ConfregError(
            f"heads={part.strip()}: layer {layer} of {model.name} has no attention heads; layers "
            f"that have are {others}."
        )
    if layer > last:
        raise ConfregError(
            f"heads={part.strip()}: it comes after the watched neurons of layer {last} and cannot "
            "change them. Name neurons of a later layer with --neurons."
        )
    return layer, head


def _pools(
    members: list[Head], chosen: list[Head], controls: str, every: list[Head], last: int
) -> list[tuple[list[Head], int]]:
    """Heads to draw from, and how many of each list.

    Raises
    ------
    ConfregError
        There are too few.
    """
    layers = [layer for layer, _ in members]
    groups = [[a] for a in sorted(set(layers))] if controls == "same" else [range(last + 1)]
    pools = []
    for group in groups:
        free = [head for head in every if head[0] in group and head not in chosen]
        wanted = sum(layer in group for layer in layers)
        if len(free) < wanted:
            where, or_any = f"layers 0 to {last}", ""
            if controls == "same":
                where, or_any = f"layer {group[0]}", ", -p controls=any"
            raise ConfregError(
                f"The heads {_named(members)} leave too few others in {where} for random sets of "
                f"as many: choose fewer heads{or_any}, or -p random_sets=0."
            )
        pools.append((free, wanted))
    return pools


def _draw(
    rng: np.random.Generator, pools: list[tuple[list[Head], int]], count: int
) -> list[list[Head]]:
    """Different random sets: ``count`` of them, or all there are."""
    if math.prod(math.comb(len(free), wanted) for free, wanted in pools) <= count:
        return list(_every(pools))
    found: dict[tuple[Head, ...], None] = {}
    while len(found) < count:
        members = [
            free[i]
            for free, wanted in pools
            for i in sorted(rng.choice(len(free), wanted, replace=False).tolist())
        ]
        found[tuple(members)] = None
    return [list(members) for members in found]


def _every(pools: list[tuple[list[Head], int]]) -> Iterator[list[Head]]:
    parts = [itertools.combinations(free, wanted) for free, wanted in pools]
    for combination in itertools.product(*parts):
        yield [head for part in combination for head in part]


def _named(members: Any) -> str:
    return "+".join(f"{layer}.{head}" for layer, head in members)
