"""Plain transformers forwards with torch hooks, in float64: no confreg, no nnsight."""

from __future__ import annotations

import copy
from collections.abc import Callable

import oracle
import torch

Edit = Callable[[torch.Tensor], torch.Tensor]


class Plain:
    """A transformers model whose module inputs can be read and changed."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = copy.deepcopy(network).double().eval()
        self.kind = network.config.model_type
        self.down, self.norm = oracle.PATHS[self.kind]

    def forward(self, ids, edits: dict[str, Edit] | None = None, read: tuple[str, ...] = ()):
        """Logits, and the inputs of the modules in ``read``; ``edits`` change module inputs."""
        seen, hooks = {}, []

        def hook(path, edit):
            def before(module, args):
                hidden = args[0] if edit is None else edit(args[0].clone())
                seen[path] = hidden
                return (hidden, *args[1:])

            return before

        for path in {*(edits or {}), *read}:
            module = self.network.get_submodule(path)
            hooks.append(module.register_forward_pre_hook(hook(path, (edits or {}).get(path))))
        with torch.no_grad():
            logits = self.network(input_ids=ids, use_cache=False).logits.double()
        for handle in hooks:
            handle.remove()
        return logits, seen

    def neurons(self, ids, layer: int) -> torch.Tensor:
        """Activations (rows, length, width)."""
        path = self.down.format(layer)
        return self.forward(ids, read=(path,))[1][path]

    def replaced(self, ids, layer: int, values: dict[int, float]) -> torch.Tensor:
        """Logits with some neurons of a layer set to values."""

        def edit(hidden):
            for neuron, value in values.items():
                hidden[..., neuron] = float(value)
            return hidden

        return self.forward(ids, {self.down.format(layer): edit})[0]

    def scale(self, ids, edits: dict[str, Edit] | None = None) -> torch.Tensor:
        """The final norm's divisor, (rows, length)."""
        x = self.forward(ids, edits, (self.norm,))[1][self.norm]
        norm = self.network.get_submodule(self.norm)
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
        centred = self.kind in oracle.LAYER_NORM
        power = x.var(-1, unbiased=False) if centred else x.square().mean(-1)
        return (power + eps).sqrt()


def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Loss of the next token, NaN at the last position: (rows, length)."""
    found = -logits.log_softmax(-1).gather(-1, ids.roll(-1, 1)[..., None])[..., 0]
    found[:, -1] = float("nan")
    return found


def entropy(logits: torch.Tensor) -> torch.Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)
