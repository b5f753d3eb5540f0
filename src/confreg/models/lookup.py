"""Which row of the table a model has, or why it has none."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from confreg.errors import ConfregError
from confreg.models import experts, own
from confreg.models.architectures import Architecture
from confreg.models.families import ARCHITECTURES, TEXT_MODELS, WRAPPERS


def table() -> list[dict[str, str]]:
    """Every architecture that the tests cover, as rows for people.

    Each is held, with every parameter random, against an oracle of plain transformers and
    hooks: all engines on every neuron, token and effect, its attention heads (if they can be told
    apart) against masks and patterns, and its layers on disk against itself in memory.
    """
    rows = [(row.model_type, row.title, row.traits()) for row in ARCHITECTURES.values()]
    rows += [(kind, of.title, "multimodal, on text") for kind, of in WRAPPERS.items()]
    return [dict(zip(("architecture", "models", "built of"), row)) for row in rows]


def find(config: Any, name: str, network: Callable[[], Any] | None = None) -> Architecture:
    """Return the row of a model's architecture: the user's own, the table's, or a derived one.

    Parameters
    ----------
    config : transformers.PretrainedConfig
    name : str
        The model, for the message of an error.
    network : callable, optional
        Makes the model without weights, for a row to be derived from, or a user's own to be looked
        over.

    Raises
    ------
    ConfregError
        The architecture is not in the table and none can be derived, it has experts, it is a
        variant that has no readout of the known form, or a row of the user's own names what is not
        there.
    """
    kind, text = getattr(config, "model_type", "?"), text_of(config)
    row = own.rows().get(kind) or ARCHITECTURES.get(kind)
    if row is None and kind in WRAPPERS:
        within = (ARCHITECTURES | TEXT_MODELS).get(text.model_type)
        row = None if within is None else WRAPPERS[kind].around(within, kind)
    if row is None and getattr(config, "is_encoder_decoder", False):
        raise ConfregError(
            f"{name} is an encoder-decoder ({kind}); confreg measures decoder-only models."
        )
    if row is None:
        if network is None:
            raise ConfregError(_unknown(kind, name))
        built = _build(network, _unknown(kind, name))
        if any(re.search("expert|moe|router", path) for path, _ in built.named_modules()):
            raise ConfregError(
                f"{name} is a mixture-of-experts model ({kind}) of a family that confreg does not "
                f"know. It knows: {', '.join(row.model_type for row in experts.ROWS)}."
            )
        from confreg.models.derived import derive

        row = derive(config, text, name, built)
    elif row.origin and network is not None:
        from confreg.models.named import check

        check(row, text, _build(network, f"{row.origin} cannot be looked over."))
    reason = row.refuse(text)
    if reason:
        raise ConfregError(f"{name}: this variant of {row.title} cannot be measured: {reason}.")
    return row


def _build(network: Callable[[], Any], otherwise: str) -> Any:
    try:
        return network()
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfregError(f"{otherwise} (transformers cannot build one: {said})") from error


def text_of(config: Any) -> Any:
    """The configuration of the text model: of a multimodal one, the one that it holds."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


REFUSED = (
    ("other mixtures of experts", "how a token finds its experts is each family's own"),
    ("encoder-decoders", "only decoders have one readout"),
    ("Mamba, RWKV, xLSTM", "no layer has an MLP whose neurons could be measured"),
    ("PaliGemma", "it sees later tokens of a text: it is no model of the next one"),
    ("nanochat", "its final norm is called on the embeddings too"),
    ("Gemma 4 with experts, E2B", "experts beside the MLP; layers of different width"),
    ("OPT 350M", "no final norm, and a projection after the last layer"),
)
"""What cannot be measured, and why: said before anything is tried, or when it is verified."""


def _unknown(kind: str, name: str) -> str:
    return (
        f"{name} has the architecture {kind!r}, which confreg does not know; `confreg models` "
        "lists what it knows. Write a row of your own (docs/architectures.md says how), and try it "
        "with `confreg verify`."
    )
