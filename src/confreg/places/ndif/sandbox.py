"""What a process without weights cannot do: said before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from confreg.sweep.layout import resolve
from confreg.sweep.plan import axes_of

if TYPE_CHECKING:
    from confreg.subjects.neurons import Neurons
    from confreg.sweep.step import Step


def refusal(step: Step) -> str:
    """A sentence about neurons that a sandbox cannot read, or "".

    Those of routed experts lie in fused weights; those of shared experts and of ordinary MLPs are
    reached by calling modules.
    """
    if any(neurons.routed.any() for neurons in _found(step.also_reads)):
        return (
            f"{step.title}: it reads neurons of routed experts, whichever are chosen, and a "
            "server's sandbox has no weights to read them from: run it here, or on a server "
            "without a sandbox (-P sandbox=false)."
        )
    for neurons in _found([resolve(axis, None) for axis in axes_of(step)]):
        sealed = neurons.routed
        if sealed.any():
            others = int(sealed.sum()) - 1
            which = neurons.names[sealed.argmax()] + f" and {others:,} more" * (others > 0)
            are = "are neurons" if others else "is a neuron"
            return (
                f"{step.title}: {which} {are} of routed experts, whose weights are read where they "
                "are: a server's sandbox has none. Choose neurons of shared experts "
                "(expert:shared) or of layers without experts, where the model has such (random "
                "controls are drawn from a whole layer: -p random_sets=0), run it here, or on a "
                "server without a sandbox (-P sandbox=false)."
            )
    return ""


def _found(things: Iterable[Any]) -> Iterator[Neurons]:
    """Neurons that axes, or sets along one, are of."""
    from confreg.subjects.neurons import Neurons

    for found in things:
        while not isinstance(found, Neurons) and found is not None:
            found = getattr(found, "neurons", None)
        if found is not None:
            yield found
