"""The rows of the table: every family that the tests hold against an oracle.

Adding one is adding a row here and a case in ``tests/support/zoo.py``; the tests hold every row
against an oracle that does not read this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from confreg.models import experts
from confreg.models.architectures import Architecture
from confreg.models.templates import (
    AFTER,
    BETWEEN,
    CAPPED,
    COHERE,
    FOUR_TIMES,
    FUSED,
    GATED,
    GPTJ,
    GRANITE,
    LAYER_NORM,
    MIXED,
    ONE_PLUS,
    PARALLEL,
    PHI,
    SINKS,
    UNGATED,
    Trait,
    gpt2,
    llama,
)


def _refuse_opt(config: Any) -> str | None:
    if not config.do_layer_norm_before or getattr(config, "_remove_final_layer_norm", False):
        return "it has no final norm (its layers normalise after adding), so there is no readout"
    if config.word_embed_proj_dim != config.hidden_size:
        return (
            f"it projects its final residual from {config.hidden_size} to "
            f"{config.word_embed_proj_dim} dimensions between the final norm and the unembedding"
        )
    return None


def _refuse_bloom(config: Any) -> str | None:
    if config.slow_but_exact and config.pretraining_tp > 1:
        return "slow_but_exact bypasses the down-projection module; set it to false"
    return None


def _before_falcon(config: Any) -> str:
    if config.new_decoder_architecture and (config.num_ln_in_parallel_attn or 2) == 2:
        return "ln_mlp"
    return "input_layernorm" if config.parallel_attn else "post_attention_layernorm"


def _before_stablelm(config: Any) -> str:
    return "input_layernorm" if config.use_parallel_residual else "post_attention_layernorm"


def _attention_layers(config: Any) -> list[bool]:
    """Which layers of a hybrid attend; the others mix tokens in other ways."""
    return [kind.endswith("attention") and kind[:6] != "linear" for kind in config.layer_types]


def _refuse_gemma4(config: Any) -> str | None:
    if getattr(config, "enable_moe_block", False):
        return "a router chooses experts beside its MLP, and one norm follows both"
    if getattr(config, "use_double_wide_mlp", False) and config.num_kv_shared_layers:
        return "its layers have different numbers of neurons"
    return None


def _after_gemma4(config: Any) -> str:
    per_layer = getattr(config, "hidden_size_per_layer_input", 0)
    return "a gated input of the token's own follows its MLP" if per_layer else ""


_GEMMA4: Trait = {
    **BETWEEN,
    **CAPPED,
    "refuse": _refuse_gemma4,
    "after_mlp": _after_gemma4,
    "scaled_sum": "pre_feedforward_layernorm",
}
"""Layers scale their output."""


def _refuse_hyperclovax(config: Any) -> str | None:
    return None if config.use_post_norm else "it has no norm after the MLP"


def _refuse_olmo_hybrid(config: Any) -> str | None:
    # Layers of linear attention have no norm after the MLP.
    return None if _attention_layers(config)[-1] else "its last layer is one of linear attention"


def _width_lfm2(config: Any) -> int:
    if not config.block_auto_adjust_ff_dim:
        return config.intermediate_size
    width = int(2 * config.intermediate_size / 3)
    if config.block_ffn_dim_multiplier is not None:
        width = int(config.block_ffn_dim_multiplier * width)
    multiple = config.block_multiple_of
    return multiple * ((width + multiple - 1) // multiple)


_ROWS = (
    gpt2("gpt2", "GPT-2", also=("Conv1D",)),
    Architecture(
        "gpt_neox",
        "GPT-NeoX, Pythia",
        **LAYER_NORM,
        **FOUR_TIMES,
        layers="gpt_neox.layers",
        norm_before="post_attention_layernorm",
        attention_out="attention.dense",
        final_norm="gpt_neox.final_layer_norm",
        parallel=True,
    ),
    llama("llama", "Llama, SmolLM"),
    llama("mistral", "Mistral"),
    llama("qwen2", "Qwen 2, Qwen 2.5"),
    llama("qwen3", "Qwen 3"),
    gpt2("gptj", "GPT-J", GPTJ),
    Architecture(
        "opt",
        "OPT",
        layers="model.decoder.layers",
        down_projection="fc2",
        up="fc1",
        norm_before="final_layer_norm",
        attention_out="self_attn.out_proj",
        final_norm="model.decoder.final_layer_norm",
        centred=True,
        eps=1e-5,  # OPT leaves torch's default
        width="ffn_dim",
        refuse=_refuse_opt,
    ),
    gpt2(
        "falcon",
        "Falcon",
        FOUR_TIMES,
        norm_before=_before_falcon,
        attention_out="self_attention.dense",
        width="ffn_hidden_size",
        parallel=True,
    ),
    gpt2(
        "bloom",
        "BLOOM",
        FOUR_TIMES,
        norm_before="post_attention_layernorm",
        attention_out="self_attention.dense",
        width=lambda config: 4 * config.hidden_size,
        refuse=_refuse_bloom,
    ),
    llama(
        "phi",
        "Phi 1, Phi 2",
        PHI,
        PARALLEL,
        down_projection="mlp.fc2",
        up="mlp.fc1",
        also=("unembedding bias",),
    ),
    llama("phi3", "Phi 3, Phi 4", FUSED),
    llama("gemma", "Gemma", ONE_PLUS),
    llama("gemma2", "Gemma 2", BETWEEN, CAPPED, ONE_PLUS),
    llama("gemma3_text", "Gemma 3 (text)", BETWEEN, CAPPED, ONE_PLUS),
    llama("gemma4_text", "Gemma 4 (text)", _GEMMA4),
    llama("olmo2", "OLMo 2", AFTER),
    llama("cohere", "Command R", COHERE),
    llama("granite", "Granite", GRANITE),
    llama("stablelm", "StableLM", LAYER_NORM, norm_before=_before_stablelm),
    llama(
        "starcoder2",
        "StarCoder 2",
        down_projection="mlp.c_proj",
        up="mlp.c_fc",
        gate="",
        centred=True,
        eps="norm_epsilon",
    ),
    llama("olmo", "OLMo", centred=True, eps=1e-5, also=("norms without weights",)),
    llama("olmo3", "OLMo 3", AFTER),
    llama(
        "olmo_hybrid",
        "OLMo Hybrid",
        AFTER,
        up="",  # layers of its two kinds normalise at different places
        norm_before="post_attention_layernorm",
        attends=_attention_layers,
        refuse=_refuse_olmo_hybrid,
        also=("linear attention",),
    ),
    llama("smollm3", "SmolLM 3"),
    llama("ministral", "Ministral"),
    llama("ministral3", "Ministral 3"),
    llama("seed_oss", "Seed-OSS"),
    llama("cwm", "Code World Model"),
    llama("arcee", "Arcee AFM", UNGATED),
    llama("helium", "Helium"),
    llama("ernie4_5", "ERNIE 4.5"),
    llama("apertus", "Apertus", UNGATED, norm_before="feedforward_layernorm"),
    llama("glm", "GLM 4 (9B)", FUSED),
    llama("glm4", "GLM 4 (0414)", FUSED, post_norm="post_mlp_layernorm"),
    llama("exaone4", "EXAONE 4", AFTER),
    llama("cohere2", "Command R7B, Command A", COHERE),
    llama("hunyuan_v1_dense", "Hunyuan"),
    llama("nemotron", "Nemotron, Minitron", ONE_PLUS, gate="", centred=True, eps="norm_eps"),
    llama("qwen3_5_text", "Qwen 3.5 (text)", GATED, also=("linear attention", "1 + γ")),
    gpt2(
        "gpt_neo",
        "GPT-Neo",
        attention_out="attn.attention.out_proj",
        width=lambda config: config.intermediate_size or 4 * config.hidden_size,
    ),
    gpt2("gpt_bigcode", "StarCoder, SantaCoder"),
    gpt2("codegen", "CodeGen", GPTJ),
    llama("granite_swa", "Granite (sliding windows)", GRANITE, SINKS),
    llama(
        "hyperclovax",
        "HyperCLOVA X",
        GRANITE,
        scale=lambda config: config.logits_scaling,
        post_norm="post_norm2",
        refuse=_refuse_hyperclovax,
    ),
    llama("jais2", "Jais 2", LAYER_NORM, UNGATED),
    gpt2(
        "mpt",
        "MPT",
        layers="transformer.blocks",
        down_projection="ffn.down_proj",
        up="ffn.up_proj",
        norm_before="norm_2",
        attention_out="attn.out_proj",
        final_norm="transformer.norm_f",
        width=lambda config: 4 * config.d_model,
    ),
    llama("persimmon", "Persimmon", PHI, FOUR_TIMES),
    llama("vaultgemma", "VaultGemma", BETWEEN, CAPPED, ONE_PLUS, post_norm=None),
    llama("youtu", "Youtu-LLM"),
    llama("diffllama", "DiffLlama", MIXED),
    llama(
        "lfm2",
        "LFM 2",
        down_projection="feed_forward.w2",
        up="feed_forward.w3",
        gate="feed_forward.w1",
        norm_before="ffn_norm",
        attention_out="self_attn.out_proj",
        final_norm="model.embedding_norm",
        eps="norm_eps",
        width=_width_lfm2,
        attends=_attention_layers,
        also=("convolutions",),
    ),
    llama(
        "falcon_h1",
        "Falcon-H1",
        down_projection="feed_forward.down_proj",
        up="feed_forward.up_proj",
        gate="feed_forward.gate_proj",
        gate_factor=lambda config: config.mlp_multipliers[0],
        norm_before="pre_ff_layernorm",
        final_norm="model.final_layernorm",
        scale=lambda config: config.lm_head_multiplier,
        multiplier=lambda config: config.mlp_multipliers[1],
        also=("Mamba beside attention", "logit scale", "residual multiplier"),
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.model_type: row for row in (*_ROWS, *experts.ROWS)}

TEXT_MODELS: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        llama("qwen2_vl_text", "Qwen 2"),
        llama("qwen2_5_vl_text", "Qwen 2.5"),
        llama("qwen3_vl_text", "Qwen 3"),
        llama("gemma4_unified_text", "Gemma 4", _GEMMA4),
    )
}
"""Text models that are found inside multimodal ones only."""


@dataclass(frozen=True)
class Wrapper:
    """A multimodal model that is measured on text, as it is: its row is its text model's.

    Attributes
    ----------
    title : str
        The name people use.
    decoder : str
        Path of the text model's decoder.
    changes : dict
        What of the text model's row is otherwise here.
    """

    title: str
    decoder: str = "model.language_model"
    changes: dict[str, Any] = field(default_factory=dict)

    def around(self, row: Architecture, model_type: str) -> Architecture:
        """The row of the text model, as a row of the wrapper."""
        return replace(row.inside(model_type, self.title, self.decoder), **self.changes)


WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper("Gemma 3 (4B and up)", changes={"softcap": None}),  # it leaves it out
    "gemma4": Wrapper("Gemma 4"),
    "gemma4_unified": Wrapper("Gemma 4 unified"),
    "mistral3": Wrapper("Mistral Small 3, Ministral 3"),
    "qwen2_vl": Wrapper("Qwen 2 VL"),
    "qwen2_5_vl": Wrapper("Qwen 2.5 VL"),
    "qwen3_vl": Wrapper("Qwen 3 VL"),
    "qwen3_5": Wrapper("Qwen 3.5", "model"),  # transformers loads the text model alone
    "llama4": Wrapper(  # likewise
        "Llama 4", "model", {"left_out": ("vision_model.", "multi_modal_projector.")}
    ),
    "llava": Wrapper("LLaVA"),
    "llava_next": Wrapper("LLaVA-NeXT"),
    "internvl": Wrapper("InternVL"),
    "cohere2_vision": Wrapper("Command A Vision", changes={"scale": 1.0}),  # it leaves it out
    "lfm2_vl": Wrapper("LFM 2 VL"),
    "smolvlm": Wrapper("SmolVLM", "model.text_model"),
    "idefics3": Wrapper("Idefics 3", "model.text_model"),
}
