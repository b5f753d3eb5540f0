"""The rows of families whose layers have routed experts.

transformers 5 gives all of them one form: a module ``experts`` that is called with hidden states,
the experts of each token and their routing weights, and holds fused weights.
"""

from __future__ import annotations

from typing import Any

from confreg.models.architectures import Architecture

_SINKS = "how much of its heads' outputs is kept depends on the token itself (attention sinks)"


def _after_first(config: Any) -> list[bool]:
    """All layers but the first few."""
    return [i >= (config.first_k_dense_replace or 0) for i in range(config.num_hidden_layers)]


def _sparse(config: Any) -> list[bool]:
    """Every so many of the layers, but for those that are named."""
    return [
        i not in (config.mlp_only_layers or ())
        and config.num_experts > 0
        and (i + 1) % config.decoder_sparse_step == 0
        for i in range(config.num_hidden_layers)
    ]


def _ernie(config: Any) -> list[bool]:
    """Every so many of the layers from one to another."""
    first, last = config.moe_layer_start_index, config.moe_layer_end_index
    return [
        (i + 1) % config.moe_layer_interval == 0 and first <= i <= last
        for i in range(config.num_hidden_layers)
    ]


_DEEPSEEK: dict[str, Any] = {
    "experts": "n_routed_experts",
    "routes": _after_first,
    "shared": "mlp.shared_experts.down_proj",
    "shared_width": lambda config: config.moe_intermediate_size * (config.n_shared_experts or 0),
    "also": ("shared expert",),
}


def _experts(model_type: str, title: str, **changes: Any) -> Architecture:
    """Return a family built like Qwen 3 MoE: RMSNorm, experts with gated MLPs."""
    row: dict[str, Any] = {
        "layers": "model.layers",
        "down_projection": "mlp.experts",
        "attention_out": "self_attn.o_proj",
        "final_norm": "model.norm",
        "centred": False,
        "eps": "rms_norm_eps",
        "width": "moe_intermediate_size",
        "experts": "num_experts",
    }
    return Architecture(model_type, title, **(row | changes))


ROWS = (
    _experts("qwen3_moe", "Qwen 3 MoE", routes=_sparse),
    _experts(
        "qwen2_moe",
        "Qwen 2 MoE",
        routes=_sparse,
        shared="mlp.shared_expert.down_proj",
        shared_gate="mlp.shared_expert_gate",
        shared_width="shared_expert_intermediate_size",
        shared_first=True,
        also=("gated shared expert",),
    ),
    _experts("olmoe", "OLMoE", width="intermediate_size"),
    _experts("mixtral", "Mixtral", width="intermediate_size", experts="num_local_experts"),
    _experts(
        "gpt_oss",
        "gpt-oss",
        width="intermediate_size",
        experts="num_local_experts",
        attention_out=None,
        no_heads=_SINKS,
    ),
    _experts("deepseek_v2", "DeepSeek V2", **_DEEPSEEK),
    _experts("deepseek_v3", "DeepSeek V3, R1", **_DEEPSEEK),
    _experts("glm4_moe", "GLM 4.5", **_DEEPSEEK),
    _experts("dots1", "dots.llm1", **_DEEPSEEK),
    _experts(
        "ernie4_5_moe",
        "ERNIE 4.5 MoE",
        experts="moe_num_experts",
        routes=_ernie,
        shared="mlp.shared_experts.down_proj",
        shared_width=lambda config: config.moe_intermediate_size * config.moe_num_shared_experts,
        shared_first=True,
        also=("shared expert",),
    ),
    _experts("minimax_m2", "MiniMax M2", width="intermediate_size", experts="num_local_experts"),
    _experts(
        "flex_olmo",
        "FlexOlmo",
        width="intermediate_size",
        post_norm="post_feedforward_layernorm",
    ),
    _experts(
        "granitemoe",
        "Granite MoE",
        down_projection="block_sparse_moe.experts",
        width="intermediate_size",
        experts="num_local_experts",
        scale=lambda config: 1 / config.logits_scaling,
        multiplier=lambda config: config.residual_multiplier,
        also=("logit scale", "residual multiplier"),
    ),
)
