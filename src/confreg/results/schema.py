"""The one table of what a dataset may hold; every write is validated against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from confreg.errors import ConfregError

if TYPE_CHECKING:
    import xarray as xr

VERSION = "1.0"
"""Version of this table; a store of another major version is refused."""


@dataclass(frozen=True)
class Variable:
    """A row of the table: ``units`` are nats, ``"1"`` for pure numbers, or empty for labels."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    units: str
    long_name: str
    coordinate: bool = False

    @property
    def attributes(self) -> dict[str, str]:
        """Attributes that the variable carries in a dataset."""
        unit = {"units": self.units} if self.units else {}
        return {"long_name": self.long_name, **unit}

    def over(self, subject: str) -> Variable:
        """The row in a dataset whose ablations are of ``subject``, for instance of ``"set"``."""
        if self.name not in PER_SUBJECT:
            return self
        return replace(self, dims=tuple(subject if d == "neuron" else d for d in self.dims))


def _rows(coordinate: bool, rows: Iterable[tuple[str, str, str, str, str]]) -> list[Variable]:
    return [
        Variable(name, tuple(dims.split()), dtype, units, text, coordinate)
        for name, dims, dtype, units, text in rows
    ]


COORDINATES = _rows(
    True,
    [
        ("neuron", "neuron", "str", "", "neuron, as layer.index"),
        ("layer", "neuron", "int32", "", "layer of the neuron, from 0"),
        ("index", "neuron", "int32", "", "index of the neuron in its layer, from 0"),
        ("set", "set", "str", "", "neurons or attention heads that are ablated together"),
        ("set_kind", "set", "str", "", "chosen, or a random control"),
        ("set_control", "set", "int32", "", "number that chosen sets and their controls share"),
        ("set_deviation", "set", "float32", "1", "k of the ablation values mean + k·σ"),
        (
            "set_clipped",
            "set",
            "bool",
            "",
            "whether replaced only on the side that the repeat moves it to",
        ),
        ("set_size", "set", "int32", "", "how many neurons or attention heads it has"),
        ("set_heads", "set", "str", "", "its attention heads, as layer.head"),
        ("member", "set neuron", "bool", "", "whether the neuron is in the set"),
        ("token", "token", "int64", "", "token, counted over all sequences"),
        ("sequence", "token", "int32", "", "sequence that the token is in"),
        ("position", "token", "int32", "", "position of the token in its sequence"),
        ("token_id", "token", "int64", "", "vocabulary index of the token"),
        ("token_text", "token", "str", "", "text of the token"),
        ("next_token_id", "token", "int64", "", "vocabulary index of the next token, -1 if none"),
        ("keep", "token", "bool", "", "whether reductions over tokens include the token"),
        ("occurrence", "token", "int32", "", "occurrence of the text: 0 first, 1 second, -1 none"),
        ("aligned", "token", "int32", "", "position in the occurrence, -1 if in none"),
        ("matched", "token", "bool", "", "whether the text goes on alike after both occurrences"),
        ("compared", "token", "bool", "", "whether means over an occurrence include the token"),
        ("effect", "effect", "str", "", "effect of ablating the neuron"),
        ("effect_units", "effect", "str", "", "units of the effect"),
        ("effect_long_name", "effect", "str", "", "description of the effect"),
        ("model_layer", "model_layer", "int32", "", "layer of the model, from 0"),
        ("model_index", "model_index", "int32", "", "index of a neuron in its layer, from 0"),
        ("head", "head", "int32", "", "query head of a layer, from 0"),
        ("component", "component", "int32", "", "left singular vector of W_U, largest first"),
    ],
)

DATA = _rows(
    False,
    [
        (
            "effects",
            "neuron token effect",
            "float32",
            "see effect_units",
            "change of the prediction against the unablated model",
        ),
        ("activation", "neuron token", "float32", "1", "activation of the neuron"),
        ("loss", "token", "float32", "nats", "loss of the unablated model on the next token"),
        ("entropy", "token", "float32", "nats", "entropy of the unablated model's prediction"),
        ("norm_scale", "token", "float32", "1", "scale s of the final normalisation"),
        ("rank", "token", "int64", "1", "rank of the correct token, 0 the likeliest, -1 if none"),
        ("top1", "token", "int64", "", "vocabulary index of the likeliest token"),
        (
            "kl_frequency",
            "token",
            "float32",
            "nats",
            "D(p_freq ‖ p_model) of the unablated model: from the unigrams to its prediction",
        ),
        ("w_out_norm", "neuron", "float32", "1", "norm of the output weight"),
        (
            "frequency_cosine",
            "neuron",
            "float32",
            "1",
            "cosine of what the neuron writes to the logits and the token-frequency direction",
        ),
        (
            "frequency_cosine_all",
            "model_layer model_index",
            "float32",
            "1",
            "frequency_cosine of every neuron of the model",
        ),
        (
            "logit_var",
            "neuron",
            "float32",
            "1",
            "variance over the vocabulary of cos(w_out, unembedding)",
        ),
        (
            "null_fraction",
            "neuron",
            "float32",
            "1",
            "share of w_out in the bottom singular vectors of the folded unembedding",
        ),
        (
            "mean_activation",
            "neuron",
            "float32",
            "1",
            "mean activation over the tokens of mean_over",
        ),
        (
            "above_mean",
            "neuron token",
            "bool",
            "",
            "whether the neuron is above its mean activation",
        ),
        ("above_share", "neuron", "float32", "1", "share of kept tokens that are above the mean"),
        (
            "effect_mean_above",
            "neuron effect",
            "float32",
            "see effect_units",
            "mean effect over kept tokens on which the neuron is above its mean",
        ),
        (
            "activation_deviation",
            "neuron",
            "float32",
            "1",
            "standard deviation of the activation over the tokens of mean_over",
        ),
        (
            "mean_first",
            "neuron",
            "float32",
            "1",
            "mean activation over the compared tokens of the first occurrence",
        ),
        (
            "mean_second",
            "neuron",
            "float32",
            "1",
            "mean activation over the compared tokens of the second occurrence",
        ),
        (
            "p_random",
            "neuron effect",
            "float32",
            "1",
            "share of random sets whose mean absolute effect is at least as large",
        ),
        (
            "prefix_score",
            "model_layer head",
            "float32",
            "1",
            "prefix-matching score: mean attention to what followed the token before",
        ),
        (
            "activation_change",
            "set token neuron",
            "float32",
            "1",
            "change of the neuron's activation against the unablated model",
        ),
        (
            "activation_change_mean",
            "set neuron",
            "float32",
            "1",
            "mean change of the neuron's activation over kept tokens",
        ),
        (
            "activation_change_abs_mean",
            "set neuron",
            "float32",
            "1",
            "mean absolute change of the neuron's activation over kept tokens",
        ),
        (
            "activation_p_random",
            "set neuron",
            "float32",
            "1",
            "share of random sets whose mean absolute change of the activation is at least as "
            "large",
        ),
        ("ablation_value", "neuron", "float32", "1", "value that replaces the activation"),
        ("te", "neuron", "float32", "nats", "mean absolute total effect over kept tokens"),
        ("de", "neuron", "float32", "nats", "mean absolute direct effect over kept tokens"),
        ("mediated", "neuron", "float32", "1", "share of the total effect that is mediated"),
        ("te_mediated", "neuron", "float32", "nats", "te - de: mediated part of the total effect"),
        (
            "temperature_share",
            "neuron",
            "float32",
            "1",
            "share of the mean D(p ‖ p') that each token's best temperature removes",
        ),
        (
            "effect_mean",
            "neuron effect",
            "float32",
            "see effect_units",
            "mean effect over kept tokens",
        ),
        (
            "effect_abs_mean",
            "neuron effect",
            "float32",
            "see effect_units",
            "mean absolute effect over kept tokens",
        ),
        ("singular_value", "component", "float32", "1", "singular value of the folded unembedding"),
        ("job_bytes_up", "job", "int64", "bytes", "size of the request"),
        ("job_bytes_down", "job", "int64", "bytes", "size of the result"),
        ("job_seconds", "job", "float64", "seconds", "the server's own execution time"),
        ("job_id", "job", "str", "", "job on the server"),
    ],
)

PER_SUBJECT = (
    "effects", "effect_mean", "effect_abs_mean", "te", "de", "mediated", "te_mediated",
    "temperature_share", "p_random",
)  # fmt: skip
"""Variables over what is ablated: along ``set`` where sets are, in place of ``neuron``."""

SUBJECTS = ("neuron", "set")

TABLE: dict[str, Variable] = {v.name: v for v in [*COORDINATES, *DATA]}


def variable(name: str) -> Variable:
    """The row of a variable.

    Raises
    ------
    ConfregError
        The table has no such variable.
    """
    if name not in TABLE:
        raise ConfregError(f"The schema has no variable {name!r}; it has {', '.join(TABLE)}.")
    return TABLE[name]


def same_dtype(have: object, want: str) -> bool:
    """Whether a numpy dtype is what the table asks for; text may be fixed-width or object."""
    import numpy as np

    dtype = np.dtype(have)  # type: ignore[arg-type]
    return dtype.kind in "OUT" if want == "str" else dtype == np.dtype(want)


def check(name: str, dims: tuple[str, ...], dtype: object) -> None:
    """Refuse a variable whose dimensions or type differ from the table.

    Raises
    ------
    ConfregError
    """
    row = variable(name)
    if dims not in [row.over(subject).dims for subject in SUBJECTS]:
        raise ConfregError(f"Variable {name!r} must have dims {row.dims}, not {dims}.")
    if not same_dtype(dtype, row.dtype):
        raise ConfregError(f"Variable {name!r} must be {row.dtype}, not {dtype}.")


def validate(ds: xr.Dataset) -> None:
    """Check a whole dataset against the table.

    Raises
    ------
    ConfregError
        The first variable that differs, or an attribute that is no flat scalar or string.
    """
    for name, array in ds.variables.items():
        check(str(name), tuple(str(d) for d in array.dims), array.dtype)
    for key, value in ds.attrs.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ConfregError(f"Attribute {key!r} must be a string or a number, not {value!r}.")
