"""Whether what a row of a user's own names is there: said before a weight is read.

Whether it is *right* is another question, which the weights answer (`confreg.models.verify`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from confreg.errors import ConfregError, said
from confreg.models.architectures import Architecture, every_layer, value_of

NUMBERS = ("eps", "width", "scale", "multiplier", "gate_factor")
OF_EXPERTS = ("experts", "plain_width", "shared_width")
NORMS = ("final_norm", "norm_before", "post_norm", "scaled_sum")
MATRICES = ("unembedding", "down_projection", "up", "gate", "attention_out")


def check(row: Architecture, config: Any, network: nn.Module) -> None:
    """Look for every attribute and module that a row names.

    Parameters
    ----------
    row : Architecture
    config : transformers.PretrainedConfig
        Of the text model.
    network : torch.nn.Module
        Without weights.

    Raises
    ------
    ConfregError
        The first that is not there or cannot be what the row says, with the row's origin, the key
        and its value.
    """
    for field in fields(row):
        value = getattr(row, field.name)
        if callable(value) and value is not every_layer:
            try:
                value(config)
            except Exception as error:
                raise _wrong(row, field.name, f"cannot be found out: {said(error)}") from error
    for key in (*NUMBERS, *OF_EXPERTS * bool(row.experts), *["softcap"] * bool(row.softcap)):
        _check_number(row, key, config)
    layers = _module(row, "layers", network)
    listed = isinstance(layers, nn.ModuleList | nn.Sequential)
    if not listed or len(layers) != config.num_hidden_layers:
        raise _wrong(row, "layers", f"is no list of {config.num_hidden_layers} layers")
    found = {key: _module(row, key, network) for key in ("final_norm", "unembedding")}
    for key, module in found.items():
        _check_matrix(row, key, module, config)
    every, banks = range(len(layers)), row.banks(config)
    plain = [i for i in every if not (banks and banks[i].experts)]
    routed = [i for i in every if i not in plain]
    attending = [i for i, attends in enumerate(row.has_heads(config)) if attends]
    for key, where in (
        ("down_projection", routed if banks else plain),
        ("plain", plain if banks else []),
        ("shared", routed),
        ("shared_gate", routed),
        ("up", plain),
        ("gate", plain),
        ("norm_before", plain),
        ("attention_out", attending),
        ("post_norm", _having(row, layers)),
        ("scaled_sum", every[-1:]),
    ):
        for layer in where:
            if _path(row, key, config) or key == "down_projection":
                module = _module(row, key, layers[layer], f"layer {layer}", config)
                _check_matrix(row, key, module, config)


def _path(row: Architecture, key: str, config: Any) -> str | None:
    return row.before_mlp(config) if key == "norm_before" else getattr(row, key)


def _having(row: Architecture, layers: Any) -> Sequence[int]:
    """Layers with a norm after the MLP, some of which a hybrid may have; else the last."""
    first = (row.post_norm or "").partition(".")[0]
    last = len(layers) - 1
    return [i for i, layer in enumerate(layers) if hasattr(layer, first)] or [last]


def _check_number(row: Architecture, key: str, config: Any) -> None:
    value = getattr(row, key)
    if isinstance(value, str) and not hasattr(config, value):
        raise _wrong(row, key, f"is no attribute of the configuration ({config.model_type})")
    found = value_of(config, value)
    if key == "softcap" and found is None:
        return
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise _wrong(row, key, f"is {found!r}, which is no number")


def _module(
    row: Architecture, key: str, root: Any, of: str = "the model", config: Any = None
) -> nn.Module:
    path = _path(row, key, config) or ""
    for part in path.split("."):
        inner = getattr(root, part, None)
        if not isinstance(inner, nn.Module):
            there = ", ".join(name for name, _ in root.named_children()) or "nothing"
            raise _wrong(row, key, f"names {part!r}, which {of} has not there, but {there}", path)
        root = inner
    return root


def _check_matrix(row: Architecture, key: str, module: nn.Module, config: Any) -> None:
    """Compare how many numbers a matrix takes and gives with what the row says."""
    sizes = _sizes(module)
    if key in NORMS and sizes is not None:
        raise _wrong(row, key, "is a matrix, and no norm", _path(row, key, config))
    if key not in MATRICES or (key == "down_projection" and row.experts):
        return
    if sizes is None:
        raise _wrong(row, key, "is no matrix")
    takes, gives = sizes
    width, model = row.n_neurons(config), int(config.hidden_size)
    form = f"takes {takes} numbers and gives {gives}"
    if key == "down_projection":
        if gives == model and takes != width:
            how_many = f"how many numbers {row.down_projection} takes, which is {takes}"
            raise _wrong(row, "width", f"is not {how_many}")
        wanted = (width, model)
    elif key == "attention_out":
        wanted = (takes, model)
    elif key == "unembedding":
        wanted = (model, gives)
    else:
        wanted = (model, 2 * width if row.up == row.gate else width)
    if sizes != wanted:
        raise _wrong(row, key, f"{form}, and not {wanted[0]} and {wanted[1]}")


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """How many numbers a matrix takes and gives; None of what is none."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
        return None
    takes, gives = weight.shape if type(module).__name__ == "Conv1D" else weight.shape[::-1]
    return int(takes), int(gives)


def _wrong(row: Architecture, key: str, why: str, value: Any = None) -> ConfregError:
    value = getattr(row, key) if value is None else value
    shown = key if callable(value) else f"{key} = {value!r}"
    return ConfregError(
        f"{row.origin}: {shown} {why}. What a row does not say is as in the family that it is "
        "like (docs/architectures.md says how one is written)."
    )
