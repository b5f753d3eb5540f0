"""What single neurons of routed experts do, found from weights and outputs, in plain transformers.

No formula of an expert's MLP is written here. What neuron i of expert e adds to the experts' output
is the difference that its column of the down-projection makes, when that is set to zero; and its
activation is that difference along the column.
"""

from __future__ import annotations

import copy

import oracle
import torch


class ExpertsOracle:
    """Ablations of experts' neurons of one transformers model, in float64.

    An expert is a number, or the name of a shared one's module, or None where a layer has an
    ordinary MLP: then its neurons are known by the weights of a plain down-projection, and by what
    the whole MLP returns.
    """

    def __init__(self, network: torch.nn.Module, path: str, norm: str = "model.norm") -> None:
        self.network = copy.deepcopy(network).double().eval()
        self.network.set_experts_implementation("eager")  # others know no float64
        self.path, self.norm = path, norm
        self.weighed = network.config.model_type == "llama4_text"

    def experts(self, layer: int) -> torch.nn.Module:
        """The module of a layer's experts."""
        return self.network.get_submodule(self.path.format(layer))

    def writer(self, layer: int, expert: int | str | None) -> torch.nn.Module:
        """The module whose output has what the neuron adds.

        Llama 4's experts return what each adds, one after the other: the module around adds it up.
        """
        if isinstance(expert, int) and not self.weighed:
            return self.experts(layer)
        return self.network.get_submodule(self.path.format(layer).rpartition(".")[0])

    def column(self, layer: int, expert: int | str | None, index: int) -> torch.Tensor:
        """A view of a neuron's output weight, (d,)."""
        if not isinstance(expert, int):
            name = "down_proj" if expert is None else f"{expert}.down_proj"
            return self.writer(layer, expert).get_submodule(name).weight.data[:, index]
        down = self.experts(layer).down_proj.data
        wide = down.shape[-1] == self.network.config.hidden_size
        return down[expert, index] if wide else down[expert, :, index]

    def without(self, ids: torch.Tensor, layer: int, expert: int | str | None, index: int):
        """Logits without the neuron, by its weight alone."""
        column = self.column(layer, expert, index)
        kept = column.clone()
        column.zero_()
        logits = self.logits(ids)
        column.copy_(kept)
        return logits

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """The model's."""
        with torch.no_grad():
            return self.network(input_ids=ids, use_cache=False).logits

    def outputs(self, ids: torch.Tensor, layer: int, expert: int | str | None):
        """What the neuron's module returns (T, d), and which tokens go to the expert (T,) bool."""
        seen = {}

        def hook(module, args, output):
            output = _first(output).flatten(0, -2)
            routed = torch.ones(len(output), dtype=torch.bool)
            if isinstance(expert, int) and not self.weighed:
                routed = (args[1] == expert).any(-1)
            seen.update({"output": output, "routed": routed} | seen)

        def route(module, args, output):
            seen["routed"] = output[0][:, expert] > 0

        writer = self.writer(layer, expert)
        hooks = [writer.register_forward_hook(hook)]
        if isinstance(expert, int) and self.weighed:
            hooks.append(writer.router.register_forward_hook(route))
        self.logits(ids)
        for each in hooks:
            each.remove()
        return seen["output"], seen["routed"]

    def activation(self, ids: torch.Tensor, layer: int, expert: int | str | None, index: int):
        """Routing weight times activation (T,), and where the token is routed there (T,) bool."""
        column = self.column(layer, expert, index)
        kept = column.clone()
        with_it, routed = self.outputs(ids, layer, expert)
        column.zero_()
        without_it, _ = self.outputs(ids, layer, expert)
        column.copy_(kept)
        found = (with_it - without_it) @ kept / kept.square().sum()
        return found, routed

    def edited(self, ids, layer, expert, index, value):
        """Effects of setting the neuron to a value wherever it is there: (T,) each."""
        activation, routed = self.activation(ids, layer, expert, index)
        change = torch.where(routed, value - activation, 0.0)[:, None]
        added = change * self.column(layer, expert, index)
        scales: list[torch.Tensor] = []

        def add(module, args, output):
            changed = _first(output) + added.view_as(_first(output))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        def pin(module, args, output):
            scales.append(self.divisor(args[0]))
            return output if len(scales) < 3 else output * (scales[2] / scales[0])[..., None]

        norm = self.network.get_submodule(self.norm).register_forward_hook(pin)
        clean = self.logits(ids)
        handle = self.writer(layer, expert).register_forward_hook(add)
        total, direct = self.logits(ids), self.logits(ids)
        handle.remove()
        norm.remove()
        return {
            **oracle.changes(clean, total, ids, "total"),
            **oracle.changes(clean, direct, ids, "direct"),
        }

    def divisor(self, x: torch.Tensor) -> torch.Tensor:
        """The final norm's, of an RMSNorm."""
        norm = self.network.get_submodule(self.norm)
        eps = getattr(norm, "variance_epsilon", None) or norm.eps
        return (x.square().mean(-1) + eps).sqrt()


def _first(output):
    """What a module returns, or the first of several things."""
    return output[0] if isinstance(output, tuple) else output
