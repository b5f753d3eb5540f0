"""The rows of families whose layers have routed experts.

transformers 5 gives all of them but Llama 4 one form: a module ``experts`` that is called with
hidden states, the experts of each token and their routing weights, and holds fused weights.
"""

from __future__ import annotations

from typing import Any

from confreg.models.templates import AFTER, GRANITE, LOCAL, SINKS, Trait, qwen3_moe


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


def _listed(config: Any) -> list[bool]:
    """Those that the configuration names."""
    return [i in config.moe_layers for i in range(config.num_hidden_layers)]


def _ernie(config: Any) -> list[bool]:
    """Every so many of the layers from one to another."""
    first, last = config.moe_layer_start_index, config.moe_layer_end_index
    return [
        (i + 1) % config.moe_layer_interval == 0 and first <= i <= last
        for i in range(config.num_hidden_layers)
    ]


_SHARED: Trait = {"shared": "mlp.shared_experts.down_proj", "also": ("shared expert",)}
_DEEPSEEK: Trait = {
    **_SHARED,
    "experts": "n_routed_experts",
    "routes": _after_first,
    "shared_width": lambda config: config.moe_intermediate_size * (config.n_shared_experts or 0),
}


ROWS = (
    qwen3_moe("qwen3_moe", "Qwen 3 MoE", routes=_sparse),
    qwen3_moe(
        "qwen2_moe",
        "Qwen 2 MoE",
        routes=_sparse,
        shared="mlp.shared_expert.down_proj",
        shared_gate="mlp.shared_expert_gate",
        shared_width="shared_expert_intermediate_size",
        shared_first=True,
        also=("gated shared expert",),
    ),
    qwen3_moe("olmoe", "OLMoE", width="intermediate_size"),
    qwen3_moe("mixtral", "Mixtral", LOCAL),
    qwen3_moe("gpt_oss", "gpt-oss", LOCAL, SINKS),
    qwen3_moe("deepseek_v2", "DeepSeek V2", _DEEPSEEK),
    qwen3_moe("deepseek_v3", "DeepSeek V3, R1", _DEEPSEEK),
    qwen3_moe("glm4_moe", "GLM 4.5", _DEEPSEEK),
    qwen3_moe("dots1", "dots.llm1", _DEEPSEEK),
    qwen3_moe(
        "ernie4_5_moe",
        "ERNIE 4.5 MoE",
        _SHARED,
        experts="moe_num_experts",
        routes=_ernie,
        shared_width=lambda config: config.moe_intermediate_size * config.moe_num_shared_experts,
        shared_first=True,
    ),
    qwen3_moe("minimax_m2", "MiniMax M2", LOCAL),
    qwen3_moe("flex_olmo", "FlexOlmo", AFTER, width="intermediate_size"),
    qwen3_moe(
        "granitemoe",
        "Granite MoE",
        GRANITE,
        LOCAL,
        down_projection="block_sparse_moe.experts",
    ),
    qwen3_moe(
        "llama4_text",
        "Llama 4 (text)",
        LOCAL,
        down_projection="feed_forward.experts",
        plain="feed_forward.down_proj",
        plain_width="intermediate_size_mlp",
        routes=_listed,
        shared="feed_forward.shared_expert.down_proj",
        shared_width="intermediate_size",
        weighs_inputs=True,
        also=("shared expert", "weighted inputs"),
    ),
)
