"""The one table of what confreg knows about each architecture.

A row says where a family keeps its decoder layers, the down-projection whose inputs are the
neurons, the final norm and the unembedding, and how logits are finished. Adding an
architecture is adding a row here and a case in ``tests/support/zoo.py``; the tests hold every row
against an oracle that does not read this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from confreg.errors import ConfregError


@dataclass(frozen=True)
class Architecture:
    """One family of models, as ``transformers`` names it (``config.model_type``).

    Attributes
    ----------
    model_type, title : str
        transformers' name, and the name people use.
    layers, final_norm, unembedding : str
        Dotted paths from the model.
    down_projection, attention_out, post_norm : str
        Dotted paths from a layer; ``attention_out`` is the projection whose input are the
        outputs of the attention's query heads side by side; ``post_norm`` normalises the MLP's
        output before it is added to the residual stream, and is None where there is none.
    centred : bool
        True for LayerNorm, False for RMSNorm.
    eps : str or float
        The configuration's attribute that holds the norms' ε, or ε itself.
    width : str or callable
        Neurons of one layer: the configuration's attribute, or a function of it.
    scale, multiplier : callable
        Of the configuration: what raw logits, and what the MLP's output, are multiplied by.
    softcap : str or None
        The configuration's attribute of the cap on final logits.
    parallel : bool
        Whether attention and MLP read the same residual (for `confreg models` only).
    also : tuple of str
        What else distinguishes the family (for `confreg models` only).
    refuse : callable
        Of the configuration: why a variant of this family cannot be measured, or None.
    """

    model_type: str
    title: str
    layers: str
    down_projection: str
    attention_out: str
    final_norm: str
    centred: bool
    eps: str | float
    unembedding: str = "lm_head"
    width: str | Callable[[Any], int] = "intermediate_size"
    post_norm: str | None = None
    scale: Callable[[Any], float] = lambda config: 1.0
    multiplier: Callable[[Any], float] = lambda config: 1.0
    softcap: str | None = None
    parallel: bool = False
    also: tuple[str, ...] = ()
    refuse: Callable[[Any], str | None] = lambda config: None

    def n_neurons(self, config: Any) -> int:
        """Neurons of one layer: inputs of its down-projection."""
        return int(self.width(config) if callable(self.width) else getattr(config, self.width))

    def norm_eps(self, config: Any) -> float:
        """Return ε of the norms."""
        return float(getattr(config, self.eps) if isinstance(self.eps, str) else self.eps)

    def readout(self, config: Any) -> dict[str, Any]:
        """Keywords of `confreg.effects.read_readout` that the configuration knows."""
        cap = getattr(config, self.softcap, None) if self.softcap else None
        return {
            "centred": self.centred,
            "eps": self.norm_eps(config),
            "scale": float(self.scale(config)),
            "softcap": None if cap is None else float(cap),
        }

    def post_readout(self, config: Any) -> dict[str, Any] | None:
        """Kind and ε of the norm after the MLP, or None where there is none."""
        if self.post_norm is None:
            return None
        return {"centred": self.centred, "eps": self.norm_eps(config)}

    def traits(self) -> str:
        """What distinguishes the family, in a few words."""
        words = ["LayerNorm" if self.centred else "RMSNorm"]
        words += ["parallel blocks"] * self.parallel
        words += ["norm after the MLP"] * (self.post_norm is not None)
        words += ["softcap"] * (self.softcap is not None)
        return ", ".join([*words, *self.also])


def _llama(model_type: str, title: str, **changes: Any) -> Architecture:
    """Return a family built like Llama: RMSNorm, gated MLP."""
    row: dict[str, Any] = {
        "layers": "model.layers",
        "down_projection": "mlp.down_proj",
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


ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        _gpt2("gpt2", "GPT-2", down_projection="mlp.c_proj", width=_inner, also=("Conv1D",)),
        Architecture(
            "gpt_neox",
            "GPT-NeoX, Pythia",
            layers="gpt_neox.layers",
            down_projection="mlp.dense_4h_to_h",
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
            attention_out="self_attention.dense",
            width="ffn_hidden_size",
            parallel=True,
        ),
        _gpt2(
            "bloom",
            "BLOOM",
            down_projection="mlp.dense_4h_to_h",
            attention_out="self_attention.dense",
            width=lambda config: 4 * config.hidden_size,
            refuse=_refuse_bloom,
        ),
        _llama(
            "phi",
            "Phi 1, Phi 2",
            down_projection="mlp.fc2",
            attention_out="self_attn.dense",
            final_norm="model.final_layernorm",
            centred=True,
            eps="layer_norm_eps",
            parallel=True,
            also=("unembedding bias",),
        ),
        _llama("phi3", "Phi 3, Phi 4", also=("fused gate and up",)),
        _llama("gemma", "Gemma", also=("1 + γ",)),
        _llama(
            "gemma2",
            "Gemma 2",
            post_norm="post_feedforward_layernorm",
            softcap="final_logit_softcapping",
            also=("1 + γ",),
        ),
        _llama(
            "gemma3_text",
            "Gemma 3 (text)",
            post_norm="post_feedforward_layernorm",
            softcap="final_logit_softcapping",
            also=("1 + γ",),
        ),
        _llama("olmo2", "OLMo 2", post_norm="post_feedforward_layernorm"),
        _llama(
            "cohere",
            "Command R",
            centred=True,
            eps="layer_norm_eps",
            scale=lambda config: config.logit_scale,
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
        _llama("stablelm", "StableLM", centred=True, eps="layer_norm_eps"),
        _llama(
            "starcoder2",
            "StarCoder 2",
            down_projection="mlp.c_proj",
            centred=True,
            eps="norm_epsilon",
        ),
    )
}

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def table() -> list[dict[str, str]]:
    """Every architecture that can be measured and what the tests verify of it, as rows.

    Each is held, with every parameter random, against an oracle of plain transformers and
    hooks, on every neuron, token and effect, its attention heads against masks and patterns, and
    with its layers on disk against itself in memory.
    """
    return [
        {
            "architecture": row.model_type,
            "models": row.title,
            "built of": row.traits(),
            "engines verified": "forward, exact, series",
            "offloaded": "equal",
        }
        for row in ARCHITECTURES.values()
    ]


def find(config: Any, name: str) -> Architecture:
    """Return the row of a model's architecture.

    Parameters
    ----------
    config : transformers.PretrainedConfig
    name : str
        The model, for the message of an error.

    Raises
    ------
    ConfregError
        The architecture is not in the table, has experts, wraps a text model in a multimodal
        one, or is a variant that has no readout of the known form.
    """
    kind = getattr(config, "model_type", "?")
    row = ARCHITECTURES.get(kind)
    if row is None:
        raise ConfregError(_unknown(config, kind, name))
    reason = row.refuse(config)
    if reason:
        raise ConfregError(f"{name}: this variant of {row.title} cannot be measured: {reason}.")
    return row


def _unknown(config: Any, kind: str, name: str) -> str:
    # A nested configuration says what the outer one wraps, and whether that has experts.
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    parts = (config, text, getattr(config, "ffn_config", None))
    if "moe" in kind or any((getattr(part, key, 0) or 0) > 1 for part in parts for key in _EXPERTS):
        return (
            f"{name} is a mixture-of-experts model ({kind}): its neurons are chosen per token by "
            "a router, which confreg does not handle. Use a dense model."
        )
    if text is not config or hasattr(config, "vision_config"):
        inner = getattr(text, "model_type", "?")
        return (
            f"{name} is a multimodal model ({kind}) around a text model ({inner}); confreg "
            "measures text models. Save its language model as a checkpoint of its own "
            "(docs/large-models.md says how) and use that folder."
        )
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder ({kind}); confreg measures decoder-only models."
    known = ", ".join(sorted(ARCHITECTURES))
    return (
        f"{name} has the architecture {kind!r}, which confreg does not know. It knows: {known}. "
        "To add one, add a row to confreg/models/architectures.py and a case to the tests' zoo."
    )


def resolve(root: Any, path: str) -> Any:
    """Follow a dotted path of attributes; works on modules and on nnsight's envoys."""
    for part in path.split("."):
        root = getattr(root, part)
    return root
