"""What neurons a layer of a mixture of experts has, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass

SHARED = "shared"


@dataclass(frozen=True)
class Bank:
    """The neurons of one layer of a family with routed experts, side by side.

    Those of expert 0 are the first, then those of expert 1 and so on, and those of the shared
    expert the last; or the layer has an ordinary MLP.

    Attributes
    ----------
    experts, each : int
        Routed experts, and neurons of each; ``experts`` is 0 in a layer with an ordinary MLP,
        ``each`` is then all neurons of that.
    shared : int
        Neurons of the shared expert; 0 where there is none.
    per_token : int
        Routed experts that a token is sent to; 0: all.
    """

    experts: int
    each: int
    shared: int = 0
    per_token: int = 0

    @property
    def size(self) -> int:
        """Neurons of the layer."""
        return (self.experts or 1) * self.each + self.shared

    def name(self, index: int) -> str:
        """A neuron without its layer: ``3.17``, ``shared.17``, of an ordinary MLP ``17``."""
        if not self.experts:
            return str(index)
        expert = self.expert(index)
        return f"{SHARED if expert < 0 else expert}.{self.own(index)}"

    def expert(self, index: int) -> int:
        """The routed expert of a neuron; -1 of the shared one, -2 of an ordinary MLP."""
        if not self.experts:
            return -2
        expert = index // self.each
        return expert if expert < self.experts else -1

    @property
    def routed(self) -> int:
        """Neurons of routed experts: they are the first."""
        return self.experts * self.each

    @property
    def share(self) -> float:
        """At which share of all tokens a routed expert's neuron is there, on average over them."""
        return self.per_token / self.experts if self.experts and self.per_token else 1.0

    def own(self, index: int) -> int:
        """A neuron's number in its expert, or in an ordinary MLP."""
        return index % self.each if index < self.routed else index - self.routed

    def bounds(self, expert: str) -> tuple[int, int] | None:
        """First neuron of an expert, named by its number or ``shared``, and how many it has.

        None where there is no such expert.
        """
        if expert == SHARED:
            return (self.experts * self.each, self.shared) if self.shared else None
        inside = int(expert) < self.experts
        return (int(expert) * self.each, self.each) if inside else None

    def describe(self) -> str:
        """What there is, in words."""
        if not self.experts:
            return f"an ordinary MLP with neurons 0 to {self.each - 1}"
        words = f"experts 0 to {self.experts - 1}, each with neurons 0 to {self.each - 1}"
        if self.shared:
            return f"{words}, and a shared one with neurons 0 to {self.shared - 1}"
        return f"{words}, and no shared one"
