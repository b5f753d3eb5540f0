"""Predictions of edited models, found without confreg and without nnsight.

A plain transformers forward, in float64 unless told, with torch hooks: some change what goes into
modules, another pins the final norm's scale for the direct effect. Module paths are written out
here, not taken from confreg's table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

Edit = Callable[[torch.Tensor], torch.Tensor]

_LLAMA = ("model.layers.{}.mlp.down_proj", "model.norm")

# The down-projection of a layer, and the final norm.
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
    "olmo": _LLAMA,
    "olmo3": _LLAMA,
    "olmo_hybrid": _LLAMA,
    "smollm3": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _LLAMA,
    "seed_oss": _LLAMA,
    "cwm": _LLAMA,
    "arcee": _LLAMA,
    "helium": _LLAMA,
    "ernie4_5": _LLAMA,
    "apertus": _LLAMA,
    "glm": _LLAMA,
    "glm4": _LLAMA,
    "exaone4": _LLAMA,
    "cohere2": _LLAMA,
    "hunyuan_v1_dense": _LLAMA,
    "nemotron": _LLAMA,
    "qwen3_5_text": _LLAMA,
    "gpt_neo": ("transformer.h.{}.mlp.c_proj", "transformer.ln_f"),
    "gpt_bigcode": ("transformer.h.{}.mlp.c_proj", "transformer.ln_f"),
    "codegen": ("transformer.h.{}.mlp.fc_out", "transformer.ln_f"),
    "granite_swa": _LLAMA,
    "hyperclovax": _LLAMA,
    "jais2": _LLAMA,
    "mpt": ("transformer.blocks.{}.ffn.down_proj", "transformer.norm_f"),
    "persimmon": ("model.layers.{}.mlp.dense_4h_to_h", "model.final_layernorm"),
    "vaultgemma": _LLAMA,
    "youtu": _LLAMA,
    "diffllama": _LLAMA,
    "lfm2": ("model.layers.{}.feed_forward.w2", "model.embedding_norm"),
    "falcon_h1": ("model.layers.{}.feed_forward.down_proj", "model.final_layernorm"),
}
_WRAPPED = ("model.language_model.layers.{}.mlp.down_proj", "model.language_model.norm")
_IN_TEXT = ("model.text_model.layers.{}.mlp.down_proj", "model.text_model.norm")
PATHS |= {
    "gemma4_text": _LLAMA,
    "gemma3": _WRAPPED,
    "gemma4": _WRAPPED,
    "gemma4_unified": _WRAPPED,
    "mistral3": _WRAPPED,
    "qwen2_vl": _WRAPPED,
    "qwen2_5_vl": _WRAPPED,
    "qwen3_vl": _WRAPPED,
    "qwen3_5": _LLAMA,
    "llava": _WRAPPED,
    "llava_next": _WRAPPED,
    "internvl": _WRAPPED,
    "cohere2_vision": _WRAPPED,
    "lfm2_vl": (
        "model.language_model.layers.{}.feed_forward.w2",
        "model.language_model.embedding_norm",
    ),
    "smolvlm": _IN_TEXT,
    "idefics3": _IN_TEXT,
}
_ROUTED = ("model.layers.{}.mlp", "model.norm")
EXPERTS = {
    "qwen3_moe": _ROUTED,
    "qwen2_moe": _ROUTED,
    "olmoe": _ROUTED,
    "mixtral": _ROUTED,
    "gpt_oss": _ROUTED,
    "deepseek_v2": _ROUTED,
    "deepseek_v3": _ROUTED,
    "glm4_moe": _ROUTED,
    "dots1": _ROUTED,
    "ernie4_5_moe": _ROUTED,
    "minimax_m2": _ROUTED,
    "flex_olmo": _ROUTED,
    "granitemoe": _ROUTED,
    "llama4_text": ("model.layers.{}.feed_forward", "model.norm"),
    "llama4": ("model.layers.{}.feed_forward", "model.norm"),
}
"""Of families with routed experts: no one module has their neurons as its input."""
LAYER_NORM = {"gpt2", "gpt_neox", "gptj", "opt", "falcon", "bloom", "phi", "cohere", "stablelm"}
LAYER_NORM |= {"starcoder2", "olmo", "cohere2", "nemotron", "gpt_neo", "gpt_bigcode", "codegen"}
LAYER_NORM |= {"jais2", "mpt", "persimmon", "cohere2_vision"}
EPS = {"olmo": 1e-5}
"""Of norms that hold none."""


@dataclass
class Ablation:
    """What the oracle found.

    ``effects`` maps names to (neurons, rows·length); ``margin`` is the smallest distance between
    any two logits that a rank or a top-1 compares, so that a test can leave out near ties.
    """

    effects: dict[str, torch.Tensor]
    margin: torch.Tensor


class Oracle:
    """A transformers model whose module inputs can be read and changed.

    ``down`` and ``layer`` are paths with a place for the layer's number, ``norm`` is one without;
    ``kind`` names the family that a network without paths of its own is like.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        dtype: torch.dtype = torch.float64,
        kind: str | None = None,
    ) -> None:
        self.network = copy.deepcopy(network).to(dtype).eval()
        self.kind = kind or network.config.model_type
        self.down, self.norm = (PATHS | EXPERTS)[self.kind]
        if self.kind in EXPERTS:
            self.network.set_experts_implementation("eager")  # others know no float64
        self.layer = self.down.partition("{}")[0] + "{}"

    def forward(
        self,
        ids: torch.Tensor,
        edits: dict[str, Edit] | None = None,
        read: tuple[str, ...] = (),
        pinned: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits in float64, and the inputs of the modules in ``read``, as they are after edits.

        ``edits`` change module inputs; ``pinned`` (rows, length) is the final norm's divisor in
        place of its own.
        """
        edits, seen, hooks = edits or {}, {}, []

        def before(path):
            def hook(module, args):
                hidden = edits[path](_copy(args[0])) if path in edits else args[0]
                seen[path] = hidden
                return (hidden, *args[1:])

            return hook

        def pin(module, args, output):
            bias = getattr(module, "bias", None)
            bias = 0 if bias is None else bias
            return (output - bias) * (self._divisor(args[0]) / pinned)[..., None] + bias

        for path in {*edits, *read}:
            hooks.append(self.network.get_submodule(path).register_forward_pre_hook(before(path)))
        if pinned is not None:
            hooks.append(self.network.get_submodule(self.norm).register_forward_hook(pin))
        with torch.no_grad():
            logits = self.network(input_ids=ids, use_cache=False).logits.double()
        for handle in hooks:
            handle.remove()
        return logits, seen

    def scaled(
        self,
        ids: torch.Tensor,
        edits: dict[str, Edit] | None = None,
        pinned: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, and the final norm's own divisor (rows, length)."""
        logits, seen = self.forward(ids, edits, (self.norm,), pinned)
        return logits, self._divisor(seen[self.norm])

    def activations(self, ids: torch.Tensor, layer: int) -> torch.Tensor:
        """Neurons of a layer, (rows, length, width); OPT flattens rows and positions."""
        path = self.down.format(layer)
        return self.forward(ids, read=(path,))[1][path]

    def scale(self, ids: torch.Tensor, edits: dict[str, Edit] | None = None) -> torch.Tensor:
        """The final norm's divisor, (rows, length)."""
        return self.scaled(ids, edits)[1]

    def replaced(self, ids: torch.Tensor, layer: int, values: dict[int, float]) -> torch.Tensor:
        """Logits with some neurons of a layer set to values."""
        return self.forward(ids, {self.down.format(layer): setting(values)})[0]

    def ablate(
        self, ids: torch.Tensor, layer: int, neurons: list[int], values: torch.Tensor
    ) -> Ablation:
        """Effects of each neuron on each token of ``ids`` (rows, length)."""
        clean, scale = self.scaled(ids)
        many = ids.repeat(len(neurons), 1)

        def replace(hidden):
            by_row = hidden.view(*many.shape, -1)  # OPT flattens rows and positions
            for j, neuron in enumerate(neurons):
                by_row[j * len(ids) : (j + 1) * len(ids), :, neuron] = values[j].to(hidden.dtype)
            return hidden

        edits = {self.down.format(layer): replace}
        total, _ = self.forward(many, edits)
        direct, _ = self.forward(many, edits, pinned=scale.repeat(len(neurons), 1))
        before = clean.repeat(len(neurons), 1, 1)
        found = {**changes(before, total, many, "total"), **changes(before, direct, many, "direct")}
        margins = torch.stack([_margin(logits, many) for logits in (before, total, direct)])
        return Ablation(
            {name: change.view(len(neurons), -1) for name, change in found.items()},
            margins.amin(0).view(len(neurons), -1),
        )

    def edited(self, ids: torch.Tensor, path: str, edit: Edit) -> dict[str, torch.Tensor]:
        """Effects (rows·length,) of an ``edit`` of a module's input, and of the norm's scale."""
        clean, scale = self.scaled(ids)
        total, after = self.scaled(ids, {path: edit})
        direct, _ = self.forward(ids, {path: edit}, pinned=scale)
        return {
            **changes(clean, total, ids, "total"),
            **changes(clean, direct, ids, "direct"),
            "norm_scale_total": (after - scale).flatten(),
        }

    def _divisor(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.network.get_submodule(self.norm)
        eps = EPS.get(self.kind) or getattr(norm, "eps", None) or norm.variance_epsilon
        power = x.var(-1, unbiased=False) if self.kind in LAYER_NORM else x.square().mean(-1)
        return (power + eps).sqrt()


def setting(values: dict[int, float]) -> Edit:
    """An edit that sets some entries of the last dim, at every token."""

    def edit(hidden):
        for index, value in values.items():
            hidden[..., index] = torch.as_tensor(value).to(hidden)
        return hidden

    return edit


def changes(
    before: torch.Tensor, after: torch.Tensor, ids: torch.Tensor, pathway: str
) -> dict[str, torch.Tensor]:
    """What changed between logits, by effect: (rows·length,) each."""
    old, new = _measures(before, ids), _measures(after, ids)
    found = {f"{name}_{pathway}": (new[name] - old[name]).flatten() for name in new}
    found[f"top1_{pathway}"] = (new["top1"] != old["top1"]).double().flatten()
    return found


def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Loss of the next token, NaN at the last position: (rows, length)."""
    found = -logits.log_softmax(-1).gather(-1, ids.roll(-1, 1)[..., None])[..., 0]
    found[:, -1] = float("nan")
    return found


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the prediction: (rows, length)."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def rank(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """How many tokens are likelier than the next one, NaN at the last position."""
    log_p = logits.log_softmax(-1)
    at = log_p.gather(-1, ids.roll(-1, 1)[..., None])
    found = (log_p > at).sum(-1).double()
    found[:, -1] = float("nan")
    return found


def _measures(logits, ids):
    return {
        "loss": loss(logits, ids),
        "entropy": entropy(logits),
        "rank": rank(logits, ids),
        "top1": logits.argmax(-1),
        "confidence": logits.softmax(-1).amax(-1),
        "correct": correct(logits, ids),
    }


def correct(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """1 where the likeliest token is the next one, NaN at the last position."""
    found = (logits.argmax(-1) == ids.roll(-1, 1)).double()
    found[:, -1] = float("nan")
    return found


def _margin(logits, ids):
    """Distance of the target's logit from any other, and of the largest from the second."""
    following = ids.roll(-1, 1)[..., None]
    away = (logits - logits.gather(-1, following)).abs()
    away = away.scatter(-1, following, float("inf")).amin(-1)
    top = logits.topk(2, -1).values
    return torch.minimum(away, top[..., 0] - top[..., 1])


def _copy(hidden):
    return hidden.clone(memory_format=torch.contiguous_format)
