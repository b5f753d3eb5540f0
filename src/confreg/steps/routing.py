"""What a text's routing says before a plan can be made: which neurons it is routed to most."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from confreg.steps.values import summing
from confreg.subjects import routing

if TYPE_CHECKING:
    from confreg.models import Description
    from confreg.progress import Progress
    from confreg.subjects.neurons import NeuronAxis
    from confreg.subjects.routing import Order
    from confreg.sweep.budget import Budget
    from confreg.sweep.place import Place
    from confreg.sweep.step import Step
    from confreg.tokens.axis import Text

COUNT, SQUARES = "activation_count", "activation_sum_of_squares"


@dataclass(frozen=True, eq=False)
class Routing:
    """One pass over a text, up to some layers.

    Attributes
    ----------
    model : Description
    text : Text
    wanted : mapping of int to int
        By layer, how many of its neurons.
    order : mapping
        What is known of them.
    """

    model: Description
    text: Text
    wanted: Mapping[int, int]
    order: Order

    @property
    def title(self) -> str:
        """What it is called."""
        return "routing"

    @property
    def is_known(self) -> bool:
        """Whether it was measured."""
        return all(layer in self.order for layer in self.wanted)

    @property
    def found(self) -> dict[str, list[int]]:
        """What a store keeps of it, so that no run in it measures it again."""
        return {str(layer): self.order[layer][:n].tolist() for layer, n in self.wanted.items()}

    def kept(self, found: Mapping[str, list[int]]) -> Order | None:
        """What a store has kept; None where that is of other layers, or of fewer neurons."""
        order = {int(layer): np.array(index, np.int64) for layer, index in found.items()}
        enough = all(len(order.get(layer, ())) == n for layer, n in self.wanted.items())
        return order if enough else None

    def describe(self) -> str:
        """What is measured first, in words."""
        layers = ", ".join(map(str, sorted(self.wanted)))
        return (
            f"which neurons of layer {layers} are routed to most is found first, by one more pass "
            "of the text up to there"
        )

    def measure(self, place: Place, progress: Progress) -> Order:
        """Run it, and forget all but which neurons are routed to most."""
        from confreg.sweep.plan import Plan
        from confreg.sweep.run import Run
        from confreg.sweep.store import Store

        axis = routing.candidates(sorted(self.wanted), self.model)
        plan = Plan(self.title, (self._step(axis),), place, {self.title: sorted(self.wanted)}, {})
        with tempfile.TemporaryDirectory(prefix="confreg-") as folder:
            path = Path(folder) / "routing.zarr"
            store = Store.create(path, plan.configuration, plan.attributes)
            with place.entered(path, plan.configuration, progress):
                Run(plan, store, progress).execute()
            return routing.ordered(axis, store.read(COUNT), store.read(SQUARES))

    def _step(self, axis: NeuronAxis) -> Step:
        def most(budget: Budget) -> dict[str, int]:
            # Activations of all neurons in float64, and their squares.
            held = max(budget.memory // (32 * len(axis)), 1)
            return {self.text.name: held if budget.dear else min(held, budget.tokens)}

        return summing(axis, self.text, {"activation": self.text.keep}, self.title, most)
