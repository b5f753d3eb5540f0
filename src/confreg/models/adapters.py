"""Adapters: LoRA and its relatives, attached to a model by nnsight.

Each module that an adapter targets becomes the adapter's layer under the same name. All that is
measured calls modules, so a neuron's output weight, the unembedding and every number that follows
include the adapter's update, which stays in its own precision: nothing is merged, nothing rounded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from confreg.errors import ConfregError, said

CONFIGURATION = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
HERE_ONLY = (
    "--adapter is for this machine: a server runs the models that it has. Ask its operator to "
    "deploy the merged model."
)


def locate(name: str | Path) -> Path:
    """The folder of an adapter, fetched from the Hub where there is none by that name.

    Parameters
    ----------
    name : str or Path
        A folder, or ``owner/adapter`` or ``owner/adapter@revision`` of the Hub.

    Raises
    ------
    ConfregError
        There is none, it cannot be fetched, or it is no adapter.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetch(str(name))
    if "peft_type" not in _configuration(folder):
        raise ConfregError(
            f"{name} is no adapter: it has no {CONFIGURATION} that says its peft_type."
        )
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise ConfregError(f"The adapter {name} has no weights: no {' and no '.join(WEIGHTS)}.")
    return folder


def _configuration(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=[CONFIGURATION, *WEIGHTS]
            )
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfregError(
            f"There is no adapter {name!r}: it is no folder here, and the Hugging Face Hub does "
            f"not give it ({said(error)})."
        ) from error


def attach(network: Any, name: str | Path, model: str) -> None:
    """Attach an adapter to a network, in place.

    Parameters
    ----------
    network : torch.nn.Module
        Of weights in memory, not quantized.
    name : str or Path
        As of `locate`.
    model : str
        The model's name, for the sentence of an error.

    Raises
    ------
    ConfregError
        peft is missing, the adapter's weights have no place in this network, or it is a kind that
        changes more than modules.
    """
    import importlib.util

    if importlib.util.find_spec("peft") is None:
        raise ConfregError("--adapter needs peft: python -m pip install peft.")
    from nnsight.modeling import peft

    if getattr(network, "quantization_method", None) or any(
        parameter.device.type == "meta" for parameter in network.parameters()
    ):
        raise ConfregError(
            f"An adapter is attached to weights that are in memory and not quantized, and those of "
            f"{model} are not. Save the merged model as a checkpoint (PeftModel.merge_and_unload, "
            "save_pretrained) and use that."
        )
    folder = locate(name)
    if _configuration(folder).get("target_parameters"):
        raise ConfregError(
            f"The adapter {name} changes parameters (target_parameters) and not modules, which "
            "cannot be followed. Save the merged model as a checkpoint and use that."
        )
    try:
        peft.attach(network, str(folder))
    except Exception as error:  # peft's, torch's and safetensors' own
        raise ConfregError(f"The adapter {name} is not one of {model}: {said(error)}") from error
    network.eval().requires_grad_(False)
