"""What ablating attention heads does, and what they attend to, without confreg's ways of either.

A plain transformers forward in float64. A head is ablated by *masking*: its queries are left one
key, that of position 0, and softmax does the rest. Patterns are computed from queries and keys.
Module paths are written out here, not taken from confreg's table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import oracle
import torch

FORBIDDEN = -1e9

_GPT, _LLAMA = "transformer.h.{}.attn", "model.layers.{}.self_attn"
NONE = {"qwen3_5_text", "qwen3_5", "diffllama", "granite_swa", "gpt_oss"}
"""Families whose heads are mixed, or gated by the token itself, before they are put together."""
ATTENTION = dict.fromkeys((oracle.PATHS | oracle.EXPERTS).keys() - NONE, _LLAMA) | {
    name: down.partition("{}")[0] + "{}.self_attn"
    for name, (down, _) in oracle.PATHS.items()
    if down.startswith(("model.language_model", "model.text_model"))
}
ATTENTION |= {
    "gpt2": _GPT,
    "gptj": _GPT,
    "codegen": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": "transformer.h.{}.attn.attention",
    "mpt": "transformer.blocks.{}.attn",
    "gpt_neox": "gpt_neox.layers.{}.attention",
    "opt": "model.decoder.layers.{}.self_attn",
    "falcon": "transformer.h.{}.self_attention",
    "bloom": "transformer.h.{}.self_attention",
}


class HeadOracle(oracle.Oracle):
    """Ablations of the heads of one transformers model."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__(network)
        self.network.set_attn_implementation("eager")
        self.n_heads = self.network.config.get_text_config().num_attention_heads

    @contextmanager
    def first_only(
        self, heads: list[tuple[int, int]], queries: slice | int = slice(None)
    ) -> Iterator[None]:
        """Let some heads, (layer, head) each, attend to position 0 alone, from some positions."""

        def mask(own):
            def hook(module, args, kwargs):
                rows, length = kwargs.get("hidden_states", args[0] if args else None).shape[:2]
                allowed = torch.ones(length, length, dtype=torch.bool).tril()
                given = kwargs.get("attention_mask")
                given = allowed if given is None else given
                if given.dtype == torch.bool:
                    given = ~given if self.kind == "mpt" else given
                    given = torch.where(given, 0.0, FORBIDDEN)
                each = given.double().expand(rows, self.n_heads, length, length).clone()
                for head in own:
                    each[:, head, queries] = FORBIDDEN
                    each[:, head, queries, 0] = 0
                if self.kind == "mpt":  # says what is forbidden
                    each = each < 0
                return args, {**kwargs, "attention_mask": each}

            return hook

        hooks = []
        for layer in {layer for layer, _ in heads}:
            module = self.network.get_submodule(ATTENTION[self.kind].format(layer))
            own = [head for at, head in heads if at == layer]
            hooks.append(module.register_forward_pre_hook(mask(own), with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def measured(
        self,
        ids: torch.Tensor,
        heads: list[tuple[int, int]],
        queries: slice | int = slice(None),
    ) -> dict[str, torch.Tensor]:
        """Effects, total and direct, and the change of the norm scale: (rows, length)."""
        clean, scale = self.scaled(ids)
        with self.first_only(heads, queries):
            total, after = self.scaled(ids)
            direct, _ = self.forward(ids, pinned=scale)
        found = {
            **oracle.changes(clean, total, ids, "total"),
            **oracle.changes(clean, direct, ids, "direct"),
            "norm_scale_total": after - scale,
        }
        return {name: change.view(ids.shape) for name, change in found.items()}

    def patterns(self, ids: torch.Tensor, layer: int) -> torch.Tensor:
        """Attention of a GPT-2 or Llama layer, (rows, heads, length, length), from its q and k."""
        module = self.network.get_submodule(ATTENTION[self.kind].format(layer))
        projections = {
            name: getattr(module, name)
            for name in ("c_attn", "q_proj", "k_proj")
            if hasattr(module, name)
        }
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            projection.register_forward_hook(
                lambda module, args, output, name=name: seen.update({name: output})
            )
            for name, projection in projections.items()
        ]
        self.forward(ids)
        for hook in hooks:
            hook.remove()
        if "c_attn" in seen:
            q, k, _ = seen["c_attn"].chunk(3, -1)
            q, k = (x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for x in (q, k))
        else:
            width = seen["q_proj"].shape[-1] // self.n_heads
            q, k = (
                _rotated(seen[name].unflatten(-1, (-1, width)).transpose(1, 2))
                for name in ("q_proj", "k_proj")
            )
            k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # grouped queries
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        return logits.masked_fill(future, float("-inf")).softmax(-1)


def _rotated(x: torch.Tensor, base: float = 10000.0) -> torch.Tensor:
    """Rotary positions: pair i, i + d/2 turned by position · base^(−2i/d)."""
    length, d = x.shape[-2:]
    speed = base ** (-torch.arange(0, d, 2).double() / d)
    angle = torch.arange(length).double()[:, None] * speed
    first, second = x[..., : d // 2], x[..., d // 2 :]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
