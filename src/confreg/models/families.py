"""The rows of the table: every family that the tests hold against an oracle.

Adding one is adding a row here and a case in ``tests/support/zoo.py``; the tests hold every row
against an oracle that does not read this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from confreg.models import experts
from confreg.models.architectures import Architecture


def _llama(model_type: str, title: str, **changes: Any) -> Architecture:
    """Return a family built like Llama: RMSNorm, gated MLP."""
    row: dict[str, Any] = {
        "layers": "model.layers",
        "down_projection": "mlp.down_proj",
        "up": "mlp.up_proj",
        "gate": "mlp.gate_proj",
        "norm_before": "post_attention_layernorm",
        "attention_out": "self_attn.o_proj",
        "final_norm": "model.norm",
        "centred": False,
        "eps": "rms_norm_eps",
    }
    return Architecture(model_type, title, **(row | changes))


def _gpt2(model_type: str, title: str, **changes: Any) -> Architecture:
    """Return a family that names its modules like GPT-2."""
    row: dict[str, Any] = {
        "layers": "transformer.h",
        "up": "mlp.c_fc",
        "norm_before": "ln_2",
        "attention_out": "attn.c_proj",
        "final_norm": "transformer.ln_f",
        "centred": True,
        "eps": "layer_norm_epsilon",
    }
    return Architecture(model_type, title, **(row | changes))


def _inner(config: Any) -> int:
    return config.n_inner if config.n_inner is not None else 4 * config.n_embd


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


_FUSED: dict[str, Any] = {
    "up": "mlp.gate_up_proj",
    "gate": "mlp.gate_up_proj",
    "also": ("fused gate and up",),
}


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


def _gemma4(model_type: str, title: str, **changes: Any) -> Architecture:
    """Return a family built like Gemma 4, whose layers scale their output."""
    row: dict[str, Any] = {
        "norm_before": "pre_feedforward_layernorm",
        "post_norm": "post_feedforward_layernorm",
        "softcap": "final_logit_softcapping",
        "refuse": _refuse_gemma4,
        "after_mlp": _after_gemma4,
        "scaled_sum": "pre_feedforward_layernorm",
    }
    return _llama(model_type, title, **(row | changes))


_GATED = "each token multiplies its heads' outputs by a gate of its own"
_SINKS = "how much of its heads' outputs is kept depends on the token itself (attention sinks)"
_MIXED = "its heads' outputs are taken from one another and normalised"


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
    _gpt2("gpt2", "GPT-2", down_projection="mlp.c_proj", width=_inner, also=("Conv1D",)),
    Architecture(
        "gpt_neox",
        "GPT-NeoX, Pythia",
        layers="gpt_neox.layers",
        down_projection="mlp.dense_4h_to_h",
        up="mlp.dense_h_to_4h",
        norm_before="post_attention_layernorm",
        attention_out="attention.dense",
        final_norm="gpt_neox.final_layer_norm",
        centred=True,
        eps="layer_norm_eps",
        parallel=True,
    ),
    _llama("llama", "Llama, SmolLM"),
    _llama("mistral", "Mistral"),
    _llama("qwen2", "Qwen 2, Qwen 2.5"),
    _llama("qwen3", "Qwen 3"),
    _gpt2(
        "gptj",
        "GPT-J",
        down_projection="mlp.fc_out",
        up="mlp.fc_in",
        norm_before="ln_1",
        attention_out="attn.out_proj",
        width=_inner,
        parallel=True,
        also=("unembedding bias",),
    ),
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
    _gpt2(
        "falcon",
        "Falcon",
        down_projection="mlp.dense_4h_to_h",
        up="mlp.dense_h_to_4h",
        norm_before=_before_falcon,
        attention_out="self_attention.dense",
        width="ffn_hidden_size",
        parallel=True,
    ),
    _gpt2(
        "bloom",
        "BLOOM",
        down_projection="mlp.dense_4h_to_h",
        up="mlp.dense_h_to_4h",
        norm_before="post_attention_layernorm",
        attention_out="self_attention.dense",
        width=lambda config: 4 * config.hidden_size,
        refuse=_refuse_bloom,
    ),
    _llama(
        "phi",
        "Phi 1, Phi 2",
        down_projection="mlp.fc2",
        up="mlp.fc1",
        gate="",
        norm_before="input_layernorm",
        attention_out="self_attn.dense",
        final_norm="model.final_layernorm",
        centred=True,
        eps="layer_norm_eps",
        parallel=True,
        also=("unembedding bias",),
    ),
    _llama("phi3", "Phi 3, Phi 4", **_FUSED),
    _llama("gemma", "Gemma", also=("1 + γ",)),
    _llama(
        "gemma2",
        "Gemma 2",
        norm_before="pre_feedforward_layernorm",
        post_norm="post_feedforward_layernorm",
        softcap="final_logit_softcapping",
        also=("1 + γ",),
    ),
    _llama(
        "gemma3_text",
        "Gemma 3 (text)",
        norm_before="pre_feedforward_layernorm",
        post_norm="post_feedforward_layernorm",
        softcap="final_logit_softcapping",
        also=("1 + γ",),
    ),
    _gemma4("gemma4_text", "Gemma 4 (text)"),
    _llama("olmo2", "OLMo 2", norm_before=None, post_norm="post_feedforward_layernorm"),
    _llama(
        "cohere",
        "Command R",
        centred=True,
        eps="layer_norm_eps",
        scale=lambda config: config.logit_scale,
        norm_before="input_layernorm",
        parallel=True,
        also=("logit scale",),
    ),
    _llama(
        "granite",
        "Granite",
        scale=lambda config: 1 / config.logits_scaling,
        multiplier=lambda config: config.residual_multiplier,
        also=("logit scale", "residual multiplier"),
    ),
    _llama(
        "stablelm",
        "StableLM",
        norm_before=_before_stablelm,
        centred=True,
        eps="layer_norm_eps",
    ),
    _llama(
        "starcoder2",
        "StarCoder 2",
        down_projection="mlp.c_proj",
        up="mlp.c_fc",
        gate="",
        centred=True,
        eps="norm_epsilon",
    ),
    _llama("olmo", "OLMo", centred=True, eps=1e-5, also=("norms without weights",)),
    _llama("olmo3", "OLMo 3", norm_before=None, post_norm="post_feedforward_layernorm"),
    _llama(
        "olmo_hybrid",
        "OLMo Hybrid",
        up="",  # layers of its two kinds normalise at different places
        post_norm="post_feedforward_layernorm",
        attends=_attention_layers,
        refuse=_refuse_olmo_hybrid,
        also=("linear attention",),
    ),
    _llama("smollm3", "SmolLM 3"),
    _llama("ministral", "Ministral"),
    _llama("ministral3", "Ministral 3"),
    _llama("seed_oss", "Seed-OSS"),
    _llama("cwm", "Code World Model"),
    _llama("arcee", "Arcee AFM", gate="", also=("no gate",)),
    _llama("helium", "Helium"),
    _llama("ernie4_5", "ERNIE 4.5"),
    _llama(
        "apertus",
        "Apertus",
        gate="",
        norm_before="feedforward_layernorm",
        also=("no gate",),
    ),
    _llama("glm", "GLM 4 (9B)", **_FUSED),
    _llama("glm4", "GLM 4 (0414)", post_norm="post_mlp_layernorm", **_FUSED),
    _llama("exaone4", "EXAONE 4", norm_before=None, post_norm="post_feedforward_layernorm"),
    _llama(
        "cohere2",
        "Command R7B, Command A",
        centred=True,
        eps="layer_norm_eps",
        scale=lambda config: config.logit_scale,
        norm_before="input_layernorm",
        parallel=True,
        also=("logit scale",),
    ),
    _llama("hunyuan_v1_dense", "Hunyuan"),
    _llama(
        "nemotron",
        "Nemotron, Minitron",
        gate="",
        centred=True,
        eps="norm_eps",
        also=("1 + γ",),
    ),
    _llama(
        "qwen3_5_text",
        "Qwen 3.5 (text)",
        attention_out=None,
        no_heads=_GATED,
        also=("linear attention", "1 + γ"),
    ),
    _gpt2(
        "gpt_neo",
        "GPT-Neo",
        down_projection="mlp.c_proj",
        attention_out="attn.attention.out_proj",
        width=lambda config: config.intermediate_size or 4 * config.hidden_size,
    ),
    _gpt2("gpt_bigcode", "StarCoder, SantaCoder", down_projection="mlp.c_proj", width=_inner),
    _gpt2(
        "codegen",
        "CodeGen",
        down_projection="mlp.fc_out",
        up="mlp.fc_in",
        norm_before="ln_1",
        attention_out="attn.out_proj",
        width=_inner,
        parallel=True,
        also=("unembedding bias",),
    ),
    _llama(
        "granite_swa",
        "Granite (sliding windows)",
        attention_out=None,
        no_heads=_SINKS,
        scale=lambda config: 1 / config.logits_scaling,
        multiplier=lambda config: config.residual_multiplier,
        also=("logit scale", "residual multiplier"),
    ),
    _llama(
        "hyperclovax",
        "HyperCLOVA X",
        post_norm="post_norm2",
        scale=lambda config: config.logits_scaling,
        multiplier=lambda config: config.residual_multiplier,
        refuse=_refuse_hyperclovax,
        also=("logit scale", "residual multiplier"),
    ),
    _llama(
        "jais2",
        "Jais 2",
        gate="",
        centred=True,
        eps="layer_norm_eps",
        also=("no gate",),
    ),
    _gpt2(
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
    _llama(
        "persimmon",
        "Persimmon",
        down_projection="mlp.dense_4h_to_h",
        up="mlp.dense_h_to_4h",
        gate="",
        attention_out="self_attn.dense",
        final_norm="model.final_layernorm",
        centred=True,
        eps="layer_norm_eps",
    ),
    _llama(
        "vaultgemma",
        "VaultGemma",
        norm_before="pre_feedforward_layernorm",
        softcap="final_logit_softcapping",
        also=("1 + γ",),
    ),
    _llama("youtu", "Youtu-LLM"),
    _llama("diffllama", "DiffLlama", attention_out=None, no_heads=_MIXED),
    _llama(
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
    _llama(
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
        _llama("qwen2_vl_text", "Qwen 2"),
        _llama("qwen2_5_vl_text", "Qwen 2.5"),
        _llama("qwen3_vl_text", "Qwen 3"),
        _gemma4("gemma4_unified_text", "Gemma 4"),
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
    "llava": Wrapper("LLaVA"),
    "llava_next": Wrapper("LLaVA-NeXT"),
    "internvl": Wrapper("InternVL"),
    "cohere2_vision": Wrapper("Command A Vision", changes={"scale": 1.0}),  # it leaves it out
    "lfm2_vl": Wrapper("LFM 2 VL"),
    "smolvlm": Wrapper("SmolVLM", "model.text_model"),
    "idefics3": Wrapper("Idefics 3", "model.text_model"),
}
