"""Which row of the table a model has, or why it has none."""

from __future__ import annotations

from typing import Any

from confreg.errors import ConfregError
from confreg.models import experts
from confreg.models.architectures import Architecture
from confreg.models.families import ARCHITECTURES, TEXT_MODELS, WRAPPERS

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def table() -> list[dict[str, str]]:
    """Every architecture that the tests cover, as rows for people.

    Each is held, with every parameter random, against an oracle of plain transformers and
    hooks: all engines on every neuron, token and effect, its attention heads (if they can be told
    apart) against masks and patterns, and its layers on disk against itself in memory.
    """
    rows = [(row.model_type, row.title, row.traits()) for row in ARCHITECTURES.values()]
    rows += [(kind, of.title, "multimodal, on text") for kind, of in WRAPPERS.items()]
    return [dict(zip(("architecture", "models", "built of"), row)) for row in rows]


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
    kind, text = getattr(config, "model_type", "?"), text_of(config)
    row = ARCHITECTURES.get(kind)
    if kind in WRAPPERS:
        within = (ARCHITECTURES | TEXT_MODELS).get(text.model_type)
        row = None if within is None else WRAPPERS[kind].around(within, kind)
    if row is None:
        raise ConfregError(_unknown(config, kind, name))
    reason = row.refuse(text)
    if reason:
        raise ConfregError(f"{name}: this variant of {row.title} cannot be measured: {reason}.")
    return row


def text_of(config: Any) -> Any:
    """The configuration of the text model: of a multimodal one, the one that it holds."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def _unknown(config: Any, kind: str, name: str) -> str:
    # A nested configuration says what the outer one wraps, and whether that has experts.
    text = text_of(config)
    parts = (config, text, getattr(config, "ffn_config", None))
    if "moe" in kind or any((getattr(part, key, 0) or 0) > 1 for part in parts for key in _EXPERTS):
        return (
            f"{name} is a mixture-of-experts model ({kind}) of a family that confreg does not "
            f"know. It knows: {', '.join(row.model_type for row in experts.ROWS)}."
        )
    if getattr(config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder ({kind}); confreg measures decoder-only models."
    if text is not config or hasattr(config, "vision_config"):
        inner = getattr(text, "model_type", "?")
        return (
            f"{name} is a multimodal model ({kind}) around a text model ({inner}), a pair that "
            "confreg does not know; `confreg models` lists those that it does."
        )
    known = ", ".join(sorted(ARCHITECTURES))
    return (
        f"{name} has the architecture {kind!r}, which confreg does not know. It knows: {known}. "
        "To add one, add a row to confreg/models/families.py and a case to the tests' zoo."
    )
