"""What a text's routing says before a plan can be made: which neurons it is routed to most."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Spans, Variable
from confreg.steps.values import activation_sums, activation_unit
from confreg.subjects import routing
from confreg.sweep.step import Step

if TYPE_CHECKING:
    from confreg.progress import Progress
    from confreg.study import Study
    from confreg.subjects.routing import Order
    from confreg.sweep.place import Place

COUNT, SQUARES = "activation_count", "activation_sum_of_squares"


@dataclass(frozen=True)
class Routing:
    """One pass over the run's text, up to some layers.

    Attributes
    ----------
    study : Study
    layers : list of int
    """

    study: Study
    layers: list[int]
    title: str = "routing"

    def describe(self) -> str:
        """What is measured first, in words."""
        layers = ", ".join(map(str, self.layers))
        return (
            f"which neurons of layer {layers} are routed to most is found first, by one more pass "
            "of the text up to there"
        )

    def measure(self, place: Place, progress: Progress) -> Order:
        """Run it, and forget all but which neurons are routed to most."""
        from confreg.sweep.plan import Plan
        from confreg.sweep.run import Run
        from confreg.sweep.store import Store

        axis = routing.candidates(self.layers, self.study.model.about)
        plan = Plan(self.title, (self._step(axis),), place, {"routing": self.layers}, {})
        with tempfile.TemporaryDirectory(prefix="confreg-") as folder:
            path = Path(folder) / "routing.zarr"
            store = Store.create(path, plan.configuration, plan.attributes)
            with place.entered(path, plan.configuration, progress):
                Run(plan, store, progress).execute()
            return routing.ordered(axis, store.read(COUNT), store.read(SQUARES))

    def _step(self, axis: Any) -> Step:
        text = self.study.sample()
        masks = {"activation": text.keep}

        def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Any:
            return activation_unit(axis, text, spans, masks)

        said: Any = {"added_over": (text.name,)}
        return Step(
            activation_sums,
            over=(axis, text),
            gives=(
                Variable(COUNT, ("neuron",), "kept tokens routed to it", dtype="int64", **said),
                Variable("activation_sum", ("neuron",), "sum", dtype="float64", **said),
                Variable(SQUARES, ("neuron",), "sum of squares", dtype="float64", **said),
            ),
            unit=unit,
            most=lambda budget: {text.name: max(budget.memory // (32 * len(axis)), 1)},
            name="routing",
        )
