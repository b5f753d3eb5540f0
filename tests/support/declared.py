"""What the shipped recipes' variables are: dims and types, held against what was written."""

from __future__ import annotations

import numpy as np
import xarray as xr

# By dims and type; "subject" is what is ablated.
VARIABLES = {
    ("neuron", "str"): "neuron",
    ("neuron", "int32"): "layer index",
    ("set", "str"): "set set_kind set_heads set_way",
    ("set", "int32"): "set_control set_size",
    ("set", "float32"): "set_deviation set_norm set_norm_gap",
    ("set", "bool"): "set_clipped",
    ("set neuron", "bool"): "member",
    ("token", "int64"): "token token_id next_token_id rank top1",
    ("token", "int32"): "sequence position occurrence aligned",
    ("token", "str"): "token_text",
    ("token", "bool"): "keep matched compared",
    ("effect", "str"): "effect effect_units effect_long_name",
    ("model_layer", "int32"): "model_layer",
    ("model_index", "int32"): "model_index",
    ("head", "int32"): "head",
    ("component", "int32"): "component",
    ("subject token effect", "float32"): "effects",
    ("neuron token", "float32"): "activation",
    ("token", "float32"): "loss entropy norm_scale kl_frequency confidence correct "
    "target_loss contrast contrast_whole",
    ("neuron", "float32"): "w_out_norm frequency_cosine logit_var null_fraction mean_activation "
    "above_share activation_deviation mean_first mean_second ablation_value",
    ("model_layer model_index", "float32"): "frequency_cosine_all",
    ("neuron token", "bool"): "above_mean",
    ("neuron effect", "float32"): "effect_mean_above",
    ("subject effect", "float32"): "p_random q_random effect_mean effect_abs_mean",
    ("model_layer head", "float32"): "prefix_score",
    ("set token neuron", "float32"): "activation_change",
    ("set neuron", "float32"): "activation_change_mean activation_change_abs_mean "
    "activation_p_random activation_q_random",
    ("subject", "float32"): "te de mediated te_mediated temperature_share accuracy mean_confidence "
    "ece ece_adaptive mce brier",
    ("subject bin", "float32"): "bin_confidence bin_accuracy",
    ("subject bin", "int64"): "bin_tokens",
    ("component", "float32"): "singular_value",
    ("job", "int64"): "job_bytes_up job_bytes_down",
    ("job", "float64"): "job_seconds",
    ("job", "str"): "job_id",
}
TABLE = {name: key for key, names in VARIABLES.items() for name in names.split()}
SUBJECTS = ("neuron", "set")
LABELS = ("top1", "predicted", "answer_before", "answer_after")
"""Numbers of tokens and of classes are no quantities."""


def validate(ds: xr.Dataset) -> None:
    """Every variable says what it is and is what it was declared as; attributes are flat."""
    for name, array in ds.variables.items():
        assert array.attrs["long_name"], name
        label = name in LABELS or name in ds.coords or array.dtype.kind in "bOUT"
        assert label or array.attrs.get("units"), name
        if name in TABLE:
            dims, dtype = TABLE[str(name)]
            allowed = [tuple(dims.replace("subject", subject).split()) for subject in SUBJECTS]
            assert array.dims in allowed, (name, array.dims)
            text = array.dtype.kind in "OUT"
            assert text if dtype == "str" else array.dtype == np.dtype(dtype), (name, array.dtype)
    for key, value in ds.attrs.items():
        assert isinstance(value, str | int | float), key
        assert not isinstance(value, bool), key
