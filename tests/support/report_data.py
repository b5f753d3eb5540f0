"""A dataset as a run of ``entropy_neurons`` stores it, made up."""

import numpy as np
import xarray as xr

NASTY = '</script><b>&amp;"x"'


def synthetic(layers=(11,), width=30, sequences=6, length=40, activation=True, seed=0):
    """Make a dataset whose neurons ``layer.3`` and ``layer.7`` act through the norm."""
    rng = np.random.default_rng(seed)
    n, t = len(layers) * width, sequences * length
    index = np.tile(np.arange(width), len(layers))
    layer = np.repeat(layers, width)
    position = np.tile(np.arange(length), sequences)
    keep = (position >= 3) & (position < length - 1)
    words = np.array([" the", " cat", "\n", " <b>", ' & "q"', "\\xe2", " déjà", "x" * 30], object)
    text = words[rng.integers(len(words), size=t)]
    text[5] = NASTY
    names = ["loss_total", "loss_direct", "entropy_total", "entropy_direct"]
    scale = rng.lognormal(-6, 1.2, n)
    share = rng.beta(1.2, 8, n)
    strong = np.isin(index, [3, 7])
    scale[strong], share[strong] = 0.2, 0.85
    total = rng.normal(size=(n, t)) * scale[:, None]
    direct = total * (1 - share)[:, None]
    cube = np.stack([total, direct, -0.8 * total, -0.8 * direct], -1).astype("float32")
    cube[:, position == length - 1] = np.nan
    te, de = (np.abs(cube[:, keep, k]).mean(1) for k in (0, 1))
    de[0] = 40 * te[0]  # a share of −3900 %

    def per(dim, values, long_name, units="1"):
        return (dim, np.asarray(values), {"long_name": long_name, "units": units})

    data = {
        "effects": per(("neuron", "token", "effect"), cube, "change of the prediction", ""),
        "loss": per("token", rng.gamma(2, 1.5, t).astype("f4"), "loss", "nats"),
        "entropy": per("token", rng.gamma(2, 1.5, t).astype("f4"), "entropy", "nats"),
        "rank": per("token", np.where(position == length - 1, -1, rng.integers(0, 99, t)), "rank"),
        "te": per("neuron", te, "mean absolute total effect", "nats"),
        "de": per("neuron", de, "mean absolute direct effect", "nats"),
        "mediated": per("neuron", 1 - de / te, "share that is mediated"),
        "te_mediated": per("neuron", te - de, "mediated part", "nats"),
        "w_out_norm": per("neuron", rng.gamma(8, 0.2, n) + 2 * strong, "norm of the output weight"),
        "logit_var": per("neuron", rng.lognormal(-7, 0.8, n), "variance of the cosine"),
        "null_fraction": per("neuron", rng.beta(2, 9, n), "share in the null space"),
        "ablation_value": per("neuron", rng.normal(size=n), "value instead of the activation"),
        "singular_value": per("component", np.geomspace(90, 0.4, 64), "singular value"),
    }
    if activation:
        data["activation"] = per(("neuron", "token"), rng.normal(size=(n, t)), "activation")
    labels = np.array([f"{a}.{b}" for a, b in zip(layer, index, strict=True)], object)
    coords = {
        "neuron": labels,
        "layer": ("neuron", layer),
        "index": ("neuron", index),
        "token": np.arange(t),
        "sequence": ("token", np.repeat(np.arange(sequences), length)),
        "position": ("token", position),
        "token_text": ("token", text),
        "keep": ("token", keep),
        "effect": np.array(names, object),
        "effect_units": ("effect", np.array(["nats"] * 4, object)),
        "component": np.arange(64),
    }
    return xr.Dataset(data, coords, attrs=ATTRIBUTES)


ATTRIBUTES = {
    "recipe": "entropy_neurons",
    "model": 'smollm2-135m<img src="x">',
    "model_revision": "0123456789abcdef",
    "model_layers": 12,
    "dtype": "float32",
    "corpus": "help topics of Python 3.11 (pydoc_data.topics)",
    "sequence_length": 40,
    "engine": "exact",
    "tolerance": 1e-4,
    "error_max": 3.2e-6,
    "error_sampled_pairs": 512.0,
    "ablation": "mean",
    "mean_over": "all",
    "profile": "memory",
    "host": "local",
    "seed": 0,
    "null_dims": 12,
    "confreg_version": "0.1.0",
    "torch_version": "2.13.0",
    "command_line": "confreg run entropy_neurons --model smollm2-135m --out runs/demo.zarr",
    "complete": 1,
}
