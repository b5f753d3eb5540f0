"""Tiny random models of every architecture, built offline.

Every parameter and every buffer is randomised, norms and biases too, and every scalar of a
configuration that is on the residual's way: a model as transformers initialises it has unit norm
weights, zero biases and scalars of 1, and would hide an error in any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from confreg.models.quiet import quiet

VOCAB = 97
ROWS = 101  # of the unembedding: four more than the tokenizer has tokens

_COMMON = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_GPT = {
    "vocab_size": ROWS,
    "n_embd": 32,
    "n_inner": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GEMMA = _COMMON | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}

_GEMMA4 = _GEMMA | {
    "final_logit_softcapping": 3.0,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 0,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
_HYBRID = ["full_attention", "linear_attention", "full_attention"]
_CONVOLUTIONS = ["full_attention", "conv", "full_attention"]
_NEO = [[["global", "local"], 1], [["global"], 1]]
_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "head_dim": 8,
    "lm_head_multiplier": 0.6,
    "mlp_multipliers": [0.8, 1.4],
    "attention_out_multiplier": 0.7,
    "ssm_out_multiplier": 1.3,
    "embedding_multiplier": 2.0,
    "key_multiplier": 0.8,
}

_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "out_hidden_size": 32}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def _around(kind: str, vision: dict[str, Any] | None = None, **others: Any) -> dict[str, Any]:
    """A multimodal configuration around one of the text models."""
    own = CONFIGS[kind] if kind in CONFIGS else _COMMON | {"head_dim": 8}
    inner = own | others.pop("text", {}) | {"model_type": kind}
    return {"text_config": inner, "vision_config": vision or _VISION, **others}


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gpt_neox": _COMMON | {"rotary_pct": 0.5, "tie_word_embeddings": False},
    "llama": _COMMON,
    "mistral": _COMMON | {"head_dim": 8},
    "qwen2": _COMMON | {"tie_word_embeddings": True},
    "qwen3": _COMMON | {"head_dim": 8},
    "gptj": _GPT | {"rotary_dim": 4, "tie_word_embeddings": False},
    "opt": _COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": _COMMON | {"ffn_hidden_size": 48, "bias": True, "multi_query": True},
    "bloom": _COMMON | {"n_layer": 3, "n_head": 4},
    "phi": _COMMON,
    "phi3": _COMMON,
    "gemma": _COMMON | {"head_dim": 8},
    "gemma2": _GEMMA | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": _GEMMA | {"final_logit_softcapping": 3.0},
    "olmo2": _COMMON,
    "cohere": _COMMON | {"logit_scale": 0.4, "use_qk_norm": False},
    "granite": _COMMON
    | {"logits_scaling": 1.7, "residual_multiplier": 0.6, "embedding_multiplier": 3.0},
    "stablelm": _COMMON | {"use_qkv_bias": True},
    "starcoder2": _COMMON,
    "olmo": _COMMON,
    "olmo3": _COMMON | {"sliding_window": 8, "layer_types": _SLIDING},
    "olmo_hybrid": _COMMON | _LINEAR | {"layer_types": _HYBRID},
    "smollm3": _COMMON | {"no_rope_layers": [1, 0, 1]},
    "ministral": _COMMON | {"head_dim": 8, "sliding_window": 8, "layer_types": _SLIDING},
    "ministral3": _COMMON | {"head_dim": 8},
    "seed_oss": _COMMON | {"head_dim": 8},
    "cwm": _COMMON | {"head_dim": 8, "sliding_window": 8, "layer_types": _SLIDING},
    "arcee": _COMMON,
    "helium": _COMMON | {"head_dim": 8},
    "ernie4_5": _COMMON | {"head_dim": 8, "use_bias": True},
    "apertus": _COMMON,
    "glm": _COMMON | {"head_dim": 8},
    "glm4": _COMMON | {"head_dim": 8},
    "exaone4": _COMMON | {"sliding_window": 8, "layer_types": _SLIDING},
    "cohere2": _COMMON | {"logit_scale": 0.4, "sliding_window": 8, "layer_types": _SLIDING},
    "hunyuan_v1_dense": _COMMON | {"head_dim": 8},
    "nemotron": _COMMON,
    "qwen3_5_text": _COMMON | _LINEAR | {"head_dim": 8, "layer_types": _HYBRID},
    "gpt_neo": _COMMON
    | {"num_layers": 3, "num_heads": 4, "window_size": 8, "attention_types": _NEO},
    "gpt_bigcode": _GPT,
    "codegen": _GPT | {"rotary_dim": 4},
    "granite_swa": _COMMON
    | {"logits_scaling": 1.7, "residual_multiplier": 0.6, "embedding_multiplier": 3.0},
    "hyperclovax": _COMMON
    | {"logits_scaling": 0.6, "residual_multiplier": 0.8, "embedding_multiplier": 3.0},
    "jais2": _COMMON,
    "mpt": {"vocab_size": ROWS, "d_model": 32, "n_heads": 4, "n_layers": 3},
    "persimmon": _COMMON,
    "vaultgemma": _GEMMA | {"final_logit_softcapping": 3.0},
    "youtu": _COMMON
    | {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    | {"v_head_dim": 6, "num_key_value_heads": 4},
    "diffllama": _COMMON,
    "lfm2": _COMMON
    | {"intermediate_size": 72}
    | {"layer_types": _CONVOLUTIONS, "block_multiple_of": 16},
    "falcon_h1": _COMMON | _MAMBA,
}
CONFIGS |= {
    "gemma4_text": _GEMMA4,
    "gemma3": _around("gemma3_text", mm_tokens_per_image=4),
    "gemma4": _around("gemma4_text", text=_GEMMA4),
    "gemma4_unified": _around("gemma4_unified_text", text=_GEMMA4),
    "mistral3": _around("ministral3"),
    "qwen2_vl": _around("qwen2_vl_text", _QWEN_VISION, text={"rope_parameters": _MROPE}),
    "qwen2_5_vl": _around("qwen2_5_vl_text", _QWEN_VISION, text={"rope_parameters": _MROPE}),
    "qwen3_vl": _around("qwen3_vl_text", _QWEN_VISION, text={"rope_parameters": _MROPE}),
    "qwen3_5": _around("qwen3_5_text"),
    "llava": _around("llama"),
    "llava_next": _around("mistral"),
    "internvl": _around("qwen2"),
    "cohere2_vision": _around("cohere2"),
    "lfm2_vl": _around("lfm2"),
    "smolvlm": _around("llama"),
    "idefics3": _around("llama"),
}
_EXPERTS = _COMMON | {"head_dim": 8, "num_experts": 6, "num_experts_per_tok": 2}
_EXPERTS |= {"moe_intermediate_size": 8, "norm_topk_prob": True, "router_aux_loss_coef": 0.0}
_LOCAL = _COMMON | {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 8}
_DEEPSEEK = _EXPERTS | {
    "n_routed_experts": 6, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.7,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip

EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": _EXPERTS | {"decoder_sparse_step": 1, "mlp_only_layers": [0]},
    "qwen2_moe": _EXPERTS
    | {"decoder_sparse_step": 1, "shared_expert_intermediate_size": 16, "norm_topk_prob": False}
    | {"mlp_only_layers": [0]},
    "olmoe": _EXPERTS | {"intermediate_size": 8, "norm_topk_prob": False},
    "mixtral": _LOCAL,
    "gpt_oss": _LOCAL
    | {"head_dim": 8, "swiglu_limit": 0.8, "sliding_window": 8, "layer_types": _SLIDING},
    "deepseek_v2": _DEEPSEEK
    | _LATENT
    | {"n_shared_experts": 2, "topk_method": "group_limited_greedy"},
    "deepseek_v3": _DEEPSEEK | _LATENT,
    "glm4_moe": _DEEPSEEK,
    "dots1": _DEEPSEEK,
    "ernie4_5_moe": _EXPERTS
    | {"moe_num_experts": 6, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1},
    "minimax_m2": _LOCAL | {"head_dim": 8},
    "flex_olmo": _EXPERTS | {"intermediate_size": 8},
    "granitemoe": _LOCAL
    | {"logits_scaling": 1.7, "residual_multiplier": 0.6, "embedding_multiplier": 3.0},
    "llama4_text": _LOCAL
    | {"head_dim": 8, "intermediate_size_mlp": 48, "moe_layers": [1, 2], "floor_scale": 4}
    | {"attention_chunk_size": 8, "no_rope_layers": [1, 0, 1], "attn_scale": 0.5},
}
"""Families with routed experts, each of eight neurons, six a layer, two of them a token."""
AROUND_EXPERTS = {
    "llama4": {
        "text_config": EXPERTS["llama4_text"] | {"model_type": "llama4_text"},
        "vision_config": _VISION,
    }
}
"""A multimodal model around one of them."""
SHARED = {
    "qwen2_moe": ("shared_expert", 16),
    "deepseek_v2": ("shared_experts", 16),
    "deepseek_v3": ("shared_experts", 8),
    "glm4_moe": ("shared_experts", 8),
    "dots1": ("shared_experts", 8),
    "ernie4_5_moe": ("shared_experts", 8),
    "llama4_text": ("shared_expert", 8),
}
"""The module of the shared expert, and how many neurons it has."""
BEGIN_PLAIN = ("qwen3_moe", *SHARED)
"""Whose first layer, as they are here, has an ordinary MLP, of 48 neurons."""

ARCHITECTURES = list(CONFIGS)
FEW = ("gpt2", "llama", "gemma2", "bloom")
"""LayerNorm and RMSNorm, post-norms and a softcap, neurons of another width."""
FEW_OF_EXPERTS = ("qwen3_moe", "gpt_oss")


def _quick(names: Iterable[str], few: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in few else [pytest.mark.slow]) for name in names]


EVERY = _quick(ARCHITECTURES, FEW)
"""For tests of every architecture, of which the quick ones take a few."""
EVERY_OF_EXPERTS = _quick(EXPERTS, FEW_OF_EXPERTS)
"""Likewise, of families with routed experts."""


def tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    """Words from ``w2`` on and the two special tokens ``<s>`` and ``</s>``."""
    words = {"<s>": 0, "</s>": 1} | {f"w{i}": i for i in range(2, size)}
    raw = Tokenizer(models.WordLevel(words, unk_token="w2"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def config(architecture: str, **overrides: Any) -> Any:
    own = (CONFIGS | EXPERTS | AROUND_EXPERTS)[architecture]
    return CONFIG_MAPPING[architecture](**own | overrides)


def tiny(
    architecture: str, *, seed: int = 0, unsaved: bool = False, **overrides: Any
) -> tuple[Any, Any]:
    """Return a random float32 model and its tokenizer.

    ``overrides`` change the configuration; ``unsaved`` buffers are random too if asked for: no
    checkpoint holds them, so that a saved and loaded model has its configuration's.
    """
    torch.manual_seed(seed)
    kind = AutoModelForCausalLM
    if architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        kind = AutoModelForImageTextToText
    network = kind.from_config(config(architecture, **overrides))
    network = network.float().eval().requires_grad_(False)
    randomise(network, torch.Generator().manual_seed(seed), unsaved)
    return network, tokenizer()


def randomise(network: torch.nn.Module, generator: torch.Generator, unsaved: bool = False) -> None:
    """Give every parameter a random value that leaves no shortcut: no 0, no 1, no symmetry.

    Buffers of floats are scaled number by number, by 0.7 to 1.3: what masks goes on masking.
    """
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if parameter.dim() > 1:
            # Logits of a few nats, neurons that matter.
            value = noise * 1.5 / parameter.shape[-1] ** 0.5
        elif name.endswith("bias"):
            value = 0.3 * noise
        else:
            value = 1 + 0.3 * noise
        parameter.data.copy_(value)
    saved = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if buffer.is_floating_point() and (unsaved or name in saved):
            buffer.mul_(0.7 + 0.6 * torch.rand(buffer.shape, generator=generator).to(buffer))


def save(
    architecture: str,
    folder: Path | str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> Path:
    """Write a checkpoint, sharded so that a shard ends inside the model, and return its folder."""
    network, words = tiny(architecture, seed=seed, **overrides)
    network.to(dtype)
    with quiet():
        network.save_pretrained(folder, max_shard_size="40KB")
        words.save_pretrained(folder)
    return Path(folder)


def tokens(rows: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    """Random sequences that begin with BOS, (rows, length) int64."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, VOCAB, (rows, length), generator=generator)
    ids[:, 0] = 0
    return ids
