"""What the rows of the table share: templates, which make a whole row, and traits, parts of one.

A family is built like another but for traits that several have, and for what is its own:
``llama("granite_swa", "Granite (sliding windows)", GRANITE, SINKS)``. What comes later counts.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from confreg.models.architectures import Architecture

Trait = dict[str, Any]
"""Some of the attributes of an `Architecture`."""


def _row(template: Trait, model_type: str, title: str, *traits: Trait, **own: Any) -> Architecture:
    made = dict(template)
    for part in (*traits, own):
        made |= part
    return Architecture(model_type, title, **made)


_DECODER: Trait = {
    "layers": "model.layers",
    "attention_out": "self_attn.o_proj",
    "final_norm": "model.norm",
    "centred": False,
    "eps": "rms_norm_eps",
}

llama = partial(
    _row,
    _DECODER
    | {
        "down_projection": "mlp.down_proj",
        "up": "mlp.up_proj",
        "gate": "mlp.gate_proj",
        "norm_before": "post_attention_layernorm",
    },
)
"""Built like Llama: RMSNorm, gated MLP."""


def _inner(config: Any) -> int:
    return config.n_inner if config.n_inner is not None else 4 * config.n_embd


gpt2 = partial(
    _row,
    {
        "layers": "transformer.h",
        "down_projection": "mlp.c_proj",
        "up": "mlp.c_fc",
        "norm_before": "ln_2",
        "attention_out": "attn.c_proj",
        "final_norm": "transformer.ln_f",
        "centred": True,
        "eps": "layer_norm_epsilon",
        "width": _inner,
    },
)
"""Modules are named as GPT-2's."""

qwen3_moe = partial(
    _row,
    _DECODER
    | {
        "down_projection": "mlp.experts",
        "width": "moe_intermediate_size",
        "experts": "num_experts",
    },
)
"""Built like Qwen 3 MoE: RMSNorm, routed experts with gated MLPs."""


# Of MLPs.
FUSED: Trait = {
    "up": "mlp.gate_up_proj",
    "gate": "mlp.gate_up_proj",
    "also": ("fused gate and up",),
}
FOUR_TIMES: Trait = {"down_projection": "mlp.dense_4h_to_h", "up": "mlp.dense_h_to_4h"}
UNGATED: Trait = {"gate": "", "also": ("no gate",)}

# Of norms.
LAYER_NORM: Trait = {"centred": True, "eps": "layer_norm_eps"}
BETWEEN: Trait = {
    "norm_before": "pre_feedforward_layernorm",
    "post_norm": "post_feedforward_layernorm",
}
AFTER: Trait = BETWEEN | {"norm_before": None}
ONE_PLUS: Trait = {"also": ("1 + γ",)}

# Of blocks.
PARALLEL: Trait = {"norm_before": "input_layernorm", "parallel": True}
GPTJ: Trait = {
    "down_projection": "mlp.fc_out",
    "up": "mlp.fc_in",
    "norm_before": "ln_1",
    "attention_out": "attn.out_proj",
    "parallel": True,
    "also": ("unembedding bias",),
}
PHI: Trait = LAYER_NORM | {
    "gate": "",
    "attention_out": "self_attn.dense",
    "final_norm": "model.final_layernorm",
}

# Of what is multiplied.
CAPPED: Trait = {"softcap": "final_logit_softcapping"}
COHERE: Trait = {
    **LAYER_NORM,
    **PARALLEL,
    "scale": lambda config: config.logit_scale,
    "also": ("logit scale",),
}
GRANITE: Trait = {
    "scale": lambda config: 1 / config.logits_scaling,
    "multiplier": lambda config: config.residual_multiplier,
    "also": ("logit scale", "residual multiplier"),
}


# Of heads that cannot be told apart.
def _no_heads(why: str) -> Trait:
    return {"attention_out": None, "no_heads": why}


GATED = _no_heads("each token multiplies its heads' outputs by a gate of its own")
SINKS = _no_heads(
    "how much of its heads' outputs is kept depends on the token itself (attention sinks)"
)
MIXED = _no_heads("its heads' outputs are taken from one another and normalised")

# Of experts.
LOCAL: Trait = {"width": "intermediate_size", "experts": "num_local_experts"}
