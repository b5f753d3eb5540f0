"""Checkpoints that are quantized already: their weights are made plain as they are read.

What is measured is exact for a network whose projections are linear. Kernels for packed weights
round what goes in as well, differ from machine to machine, and are taken or left by transformers
according to what is installed. So a checkpoint's own format is undone: the same numbers
everywhere, for the room that plain weights take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def prepare(config: PretrainedConfig, name: str) -> None:
    """Ask for plain weights, in the configuration of a checkpoint that is quantized.

    Parameters
    ----------
    config : PretrainedConfig
        Changed in place; nothing happens if its weights are plain.
    name : str
        The model's, for the sentence of an error.

    Raises
    ------
    ConfregError
        transformers does not know the format, or cannot undo it, or a library is missing.
    """
    said = _said(config)
    if said is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer
    from transformers.quantizers.base import HfQuantizer

    method = _method(said)
    kind = AUTO_QUANTIZER_MAPPING.get(method)
    if kind is None:
        raise ConfregError(
            f"{name} is quantized by {method!r}, which transformers does not know: use the model "
            "that it was made from."
        )
    as_read = "dequantize" in _parameters(said)
    if not as_read and kind._dequantize is HfQuantizer._dequantize:
        raise ConfregError(
            f"{name} is quantized by {method!r}, which transformers cannot turn back into plain "
            "weights, and what packed weights compute is not linear: use the model that it was "
            "made from, or one quantized to bitsandbytes, FP8, MXFP4 or compressed-tensors."
        )
    if as_read:
        said["dequantize"] = True
    try:
        AutoHfQuantizer.from_config(dict(said), pre_quantized=True).validate_environment(
            device_map={"": "cpu"}, weights_only=True
        )
    except (ImportError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfregError(f"{name} is quantized by {method!r}: {first}") from error


def finish(network: Any, dtype: Any, name: str) -> Any:
    """The network with plain weights, where reading did not make them so.

    Raises
    ------
    ConfregError
        Some are packed still.
    """
    import torch

    quantizer = getattr(network, "hf_quantizer", None)
    settings = getattr(quantizer, "quantization_config", None)
    if settings is not None and not getattr(settings, "dequantize", False):
        network = network.dequantize(dtype=dtype)
    for path, parameter in network.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            raise ConfregError(
                f"{name}: {path} is {parameter.dtype} after its format was undone, and cannot be "
                "measured. Use the model that it was made from."
            )
        # Experts in MXFP4 become bfloat16 whatever was asked for, and round what goes in.
        if parameter.dtype not in (dtype, torch.float32):
            parameter.data = parameter.data.to(dtype)
    network.hf_quantizer = None
    network.is_quantized = False
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    return network


def is_prequantized(config: PretrainedConfig) -> bool:
    """Whether a checkpoint says that its weights are packed."""
    return _said(config) is not None


def _said(config: PretrainedConfig) -> dict[str, Any] | None:
    """What a configuration says of its quantization, as a dictionary that stands in it."""
    for part in (config, config.get_text_config()):
        said = getattr(part, "quantization_config", None)
        if said is None:
            continue
        if not isinstance(said, dict):
            said = said.to_dict()
            part.quantization_config = said
        return said
    return None


def _method(said: dict[str, Any]) -> str:
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return "bitsandbytes_4bit" if said.get("load_in_4bit") else "bitsandbytes_8bit"
    return str(said.get("quant_method"))


def _parameters(said: dict[str, Any]) -> set[str]:
    import inspect

    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    made = AUTO_QUANTIZATION_CONFIG_MAPPING.get(_method(said))
    return set() if made is None else set(inspect.signature(made.__init__).parameters)
