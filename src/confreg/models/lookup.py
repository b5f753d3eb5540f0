"""Which row of the table a model has, or why it has none."""

from __future__ import annotations

from typing import Any

from confreg.errors import ConfregError
from confreg.models.architectures import Architecture
from confreg.models.families import ARCHITECTURES

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
        "To add one, add a row to confreg/models/families.py and a case to the tests' zoo."
    )
