"""What ablating a neuron does, found without confreg and without nnsight.

A plain transformers forward, in float64 unless told, with torch hooks: one replaces a neuron's
activation (an input of the down-projection), another pins the final norm's scale for the direct
effect.
Module paths are written out here, not taken from confreg's table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

_LLAMA = ("model.layers.{}.mlp.down_proj", "model.norm")

PATHS = {
    "gpt2": ("transformer.h.{}.mlp.c_proj", "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers.{}.mlp.dense_4h_to_h", "gpt_neox.final_layer_norm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gptj": ("transformer.h.{}.mlp.fc_out", "transformer.ln_f"),
    "opt": ("model.decoder.layers.{}.fc2", "model.decoder.final_layer_norm"),
    "falcon": ("transformer.h.{}.mlp.dense_4h_to_h", "transformer.ln_f"),
    "bloom": ("transformer.h.{}.mlp.dense_4h_to_h", "transformer.ln_f"),
    "phi": ("model.layers.{}.mlp.fc2", "model.final_layernorm"),
    "phi3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "olmo2": _LLAMA,
    "cohere": _LLAMA,
    "granite": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": ("model.layers.{}.mlp.c_proj", "model.norm"),
}
LAYER_NORM = {"gpt2", "gpt_neox", "gptj", "opt", "falcon", "bloom", "phi", "cohere", "stablelm"}
LAYER_NORM |= {"starcoder2"}


@dataclass
class Ablation:
    """What the oracle found.

    ``effects`` maps names to (neurons, rows·length); ``margin`` is the smallest distance between
    any two logits that a rank or a top-1 compares, so that a test can leave out near ties.
    """

    effects: dict[str, torch.Tensor]
    margin: torch.Tensor


class Oracle:
    """Ablations of one transformers model."""

    def __init__(self, network: torch.nn.Module, dtype: torch.dtype = torch.float64) -> None:
        self.network = copy.deepcopy(network).to(dtype).eval()
        self.kind = network.config.model_type
        self.down, norm = PATHS[self.kind]
        self.norm = self.network.get_submodule(norm)

    def activations(self, ids: torch.Tensor, layer: int) -> torch.Tensor:
        """Neurons of a layer, (rows, length, width); OPT flattens rows and positions."""
        seen = []
        hook = self._down(layer).register_forward_pre_hook(
            lambda module, args: seen.append(args[0].clone())
        )
        self._logits(ids)
        hook.remove()
        return seen[0]

    def ablate(
        self, ids: torch.Tensor, layer: int, neurons: list[int], values: torch.Tensor
    ) -> Ablation:
        """Effects of each neuron on each token of ``ids`` (rows, length)."""
        clean, scale = self._pass(ids)
        many = ids.repeat(len(neurons), 1)

        def replace(module, args):
            hidden = args[0].clone(memory_format=torch.contiguous_format)
            by_row = hidden.view(*many.shape, -1)  # OPT flattens rows and positions
            for j, neuron in enumerate(neurons):
                by_row[j * len(ids) : (j + 1) * len(ids), :, neuron] = values[j].to(hidden.dtype)
            return (hidden, *args[1:])

        hook = self._down(layer).register_forward_pre_hook(replace)
        total, _ = self._pass(many)
        direct, _ = self._pass(many, pinned=scale.repeat(len(neurons), 1, 1))
        hook.remove()

        before = _measures(clean, ids)
        effects, margins = {}, [_margin(clean, ids)]
        for name, logits in (("total", total), ("direct", direct)):
            after = _measures(logits, many)
            for measure in after:
                found = after[measure].view(len(neurons), -1)
                if measure == "top1":
                    change = (found != before[measure].view(1, -1)).double()
                else:
                    change = found - before[measure].view(1, -1)
                effects[f"{measure}_{name}"] = change
            margins.append(_margin(logits, many).view(len(neurons), -1))
        smallest = torch.minimum(margins[1], margins[2])
        return Ablation(effects, torch.minimum(smallest, margins[0].view(1, -1)))

    def edited(
        self, ids: torch.Tensor, layer: int, edit: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Effects (rows·length,) of an ``edit`` of a layer's neurons, whatever their shape."""
        clean, scale = self._pass(ids)
        hook = self._down(layer).register_forward_pre_hook(
            lambda module, args: (edit(args[0].clone()), *args[1:])
        )
        total, direct = self._pass(ids)[0], self._pass(ids, pinned=scale)[0]
        hook.remove()
        before = _measures(clean, ids)
        found = {}
        for variant, logits in (("total", total), ("direct", direct)):
            after = _measures(logits, ids)
            for measure in ("loss", "entropy"):
                found[f"{measure}_{variant}"] = (after[measure] - before[measure]).flatten()
        return found

    def _down(self, layer: int) -> torch.nn.Module:
        return self.network.get_submodule(self.down.format(layer))

    def _logits(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.network(input_ids=ids, use_cache=False).logits.double()

    def _pass(self, ids, pinned=None):
        """Logits, and the final norm's divisor; with ``pinned``, that divisor is used instead."""
        scales = []

        def hook(module, args, output):
            scale = self._scale(args[0])
            scales.append(scale)
            if pinned is None:
                return None
            bias = getattr(module, "bias", None)
            bias = 0 if bias is None else bias
            return (output - bias) * (scale / pinned) + bias

        handle = self.norm.register_forward_hook(hook)
        logits = self._logits(ids)
        handle.remove()
        return logits, scales[0]

    def _scale(self, x):
        eps = getattr(self.norm, "eps", None) or self.norm.variance_epsilon
        power = x.var(-1, unbiased=False) if self.kind in LAYER_NORM else x.square().mean(-1)
        return (power + eps).sqrt()[..., None]


def _measures(logits, ids):
    log_p = logits.log_softmax(-1)
    following = ids.roll(-1, 1)[..., None]
    at = log_p.gather(-1, following)[..., 0]
    at[:, -1] = float("nan")
    rank = (log_p > at[..., None]).sum(-1).double()
    rank[:, -1] = float("nan")
    return {
        "loss": -at,
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "rank": rank,
        "top1": logits.argmax(-1),
    }


def _margin(logits, ids):
    """Distance of the target's logit from any other, and of the largest from the second."""
    following = ids.roll(-1, 1)[..., None]
    away = (logits - logits.gather(-1, following)).abs()
    away = away.scatter(-1, following, float("inf")).amin(-1)
    top = logits.topk(2, -1).values
    return torch.minimum(away, top[..., 0] - top[..., 1])
