"""`Network`: a model as a recipe is planned on it, before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError

if TYPE_CHECKING:
    from confreg.models.model import Description


class Network:
    """A model by name: a language model that is described, or any network that nnsight traces.

    As the annotation of a recipe's parameter it says that the parameter names a model:
    ``other: Network = "EleutherAI/pythia-160m"``.

    Parameters
    ----------
    name : str
        As the dataset records it.
    about : Description, optional
        What is known of a language model; None of other networks.
    loaded : optional
        The model, where it is there already.
    make : callable, optional
        Makes the model, where it is neither described nor there.
    adapter : str, optional
        What is attached to the model once it is loaded, see `confreg.models.adapters`.
    """

    def __init__(
        self,
        name: str,
        about: Description | None = None,
        loaded: Any = None,
        make: Callable[[], Any] | None = None,
        adapter: str | None = None,
    ) -> None:
        self.name, self._about, self.adapter = name, about, adapter
        self.loaded, self.make = loaded, make
        self.fingerprint = ""  # once it is known

    def __repr__(self) -> str:
        """Name and kind."""
        kind = "" if self._about is None else f", {self._about.architecture}"
        return f"Network({self.name!r}{kind})"

    @property
    def is_language_model(self) -> bool:
        """Whether it has tokens, layers and neurons that confreg knows."""
        return self._about is not None

    @property
    def about(self) -> Description:
        """What is known of the language model.

        Raises
        ------
        ConfregError
            It is no language model.
        """
        if self._about is None:
            raise ConfregError(
                f"{self.name} is no language model that confreg knows: a recipe on it makes its "
                "own axes (confreg.Axis), and has no study.tokens() or study.neurons()."
            )
        return self._about


def traceable(network: Any) -> Network:
    """Any torch module, or one that nnsight wraps already, as a network that can be traced.

    Raises
    ------
    ConfregError
        It is neither.
    """
    import nnsight
    import torch

    name = type(getattr(network, "_module", network)).__name__
    if isinstance(network, torch.nn.Module):
        network = nnsight.NNsight(network)
    if not isinstance(network, nnsight.NNsight):
        raise ConfregError(
            f"model is a name, a path, a confreg.models.Model, a torch module or an nnsight model, "
            f"not {network!r}."
        )
    return Network(name, loaded=network)
