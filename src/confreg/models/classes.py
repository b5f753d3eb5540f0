"""Which class of transformers an architecture's models are made by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confreg.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def weightless(config: PretrainedConfig) -> Any:
    """A model of a configuration, on the meta device."""
    import torch

    with quiet(), torch.device("meta"):
        return auto_class(config.model_type).from_config(config)


def task_of(model_type: str) -> str:
    """The task by which transformers finds the class of an architecture."""
    from transformers.models.auto import modeling_auto

    causal = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "text-generation" if causal else "image-text-to-text"


def auto_class(model_type: str) -> Any:
    """The factory of transformers that makes an architecture's models."""
    import transformers

    if task_of(model_type) == "text-generation":
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText
