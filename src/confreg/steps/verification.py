"""Before anything is measured: does a row that no test covers agree with the checkpoint?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Spans, Variable
from confreg.errors import ConfregError
from confreg.subjects.neurons import Neurons
from confreg.sweep.step import Derivation, Item, Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.models.network import Network

PASSES = 15
"""How often its sequence goes through: eight copies and itself, and six times alone."""
NAMES = ("exact", "series", "largest", "finished", "ahead", "logit", "made", "neuron")


def verification(network: Network, number: int = 0) -> list[Item]:
    """Hold the engines of a model against each other on eight neurons and one sequence.

    Gives the largest difference in nats, and what the dataset says of the row. Nothing where the
    tests cover the model's architecture.

    Parameters
    ----------
    network : Network
    number : int
        Tells the models of a run apart.

    Raises
    ------
    ConfregError
        When it runs: they differ, and by how much.
    """
    if not network.is_language_model or not network.about.row.origin:
        return []
    model, prefix = network.about, "verified" if not number else f"verified_{number}"
    step = comparison(network, prefix)

    def row_verified(ds: xr.Dataset) -> dict[str, Any]:
        closed = () if model.after_mlp else ("exact", "series")
        largest = max(float(ds[f"{prefix}_{name}"]) for name in (*closed, "finished", "ahead"))
        effects = float(ds[f"{prefix}_largest"])
        said = f"{model.row.origin}, verified to {largest:.0e} nats in effects of {effects:.2g}"
        return {f"{prefix}_row": said}

    said = Variable(f"{prefix}_row", (), "where the model's row is from", "", "str")
    reads = tuple(variable.name for variable in step.gives)
    return [step, Derivation(row_verified, gives=(said,), reads=reads)]


def differences(block: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """What `confreg.models.agreement.engines` found, of a block of `comparison`."""
    return {name: float(block[f"{prefix}_{name}"]) for name in NAMES}


def comparison(network: Network, prefix: str) -> Step:
    """The engines of a model on eight neurons and one sequence, as a step of any place.

    Parameters
    ----------
    network : Network
        A language model.
    prefix : str
        Of its variables' names.
    """
    model = network.about

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Any:
        from confreg.models.agreement import tokens_for

        return tokens_for(model)

    def engines_compared(models: Any, ids: Any) -> dict[str, Any]:
        from confreg.models.agreement import as_its_row_says, engines

        with as_its_row_says(model):
            found = engines(models[0], ids)
        return {f"{prefix}_{name}": value for name, value in found.items()}

    def check(block: Mapping[str, np.ndarray], spans: Spans) -> None:
        from confreg.models.agreement import failure, of_engines

        if reason := failure(model, of_engines(model, differences(block, prefix))):
            raise ConfregError(reason)

    # Where a layer's routed experts cannot be read, its shared one serves, which comes last.
    at = np.array([model.n_layers - 1]), np.array([model.width(-1) - 1])
    hidden: Any = {"dtype": "float64", "kept": False}
    names = [f"{prefix}_{name}" for name in NAMES]
    return Step(
        engines_compared,
        over=(),
        gives=tuple(Variable(name, (), "of a verification", "nats", **hidden) for name in names),
        models=(network,),
        unit=unit,
        cost=lambda spans: PASSES,
        also_reads=(Neurons(*at, model.banks),),
        name="verifying the architecture's row",
        check=check,
    )
