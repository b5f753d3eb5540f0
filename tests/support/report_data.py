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


def _labelled(values, dims, long_name, units="1"):
    return (dims, np.asarray(values), {"long_name": long_name, "units": units})


def _text(length=60):
    rng = np.random.default_rng(1)
    words = np.array([" the", " cat", " sat", "\n", " on", " déjà", " <b>"], object)
    position = np.tile(np.arange(length // 2), 2)
    return {
        "token": np.arange(length),
        "sequence": ("token", np.repeat([0, 1], length // 2)),
        "position": ("token", position),
        "token_text": ("token", words[rng.integers(len(words), size=length)]),
        "keep": ("token", (position >= 3) & (position < length // 2 - 1)),
    }


def _effects(dim, pairs, units):
    names = [f"{quantity}_{pathway}" for quantity, pathway in pairs]
    return {
        dim: np.array(names, object),
        "quantity": (dim, np.array([quantity for quantity, _ in pairs], object)),
        "pathway": (dim, np.array([pathway for _, pathway in pairs], object)),
        f"{dim}_units": (dim, np.array(units, object)),
        f"{dim}_long_name": (dim, np.array([f"change of {name}" for name in names], object)),
    }


def steering():
    """α times a direction is added: nothing is reduced to a number per α."""
    rng = np.random.default_rng(2)
    alpha = np.array([-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
    text = _text()
    pairs = [("entropy", "total"), ("loss", "total"), ("norm_scale", "total")]
    cube = alpha[:, None, None] * rng.normal(0.1, 0.2, (1, 60, 3)) * np.array([1, 0.5, 30])
    cube[:, text["position"][1] == 29] = np.nan
    data = {
        "effects": _labelled(cube.astype("f4"), ("alpha", "token", "effect"), "change", ""),
        "loss": _labelled(rng.gamma(2, 1.5, 60).astype("f4"), "token", "loss", "nats"),
        "surprise": _labelled(rng.normal(size=60), "token", "an own measure of the token", "bits"),
    }
    labels = {"long_name": "multiple of the direction", "units": "norms"}
    coords = {"alpha": ("alpha", alpha, labels), **text}
    return xr.Dataset(data, coords | _effects("effect", pairs, ["nats", "nats", "1"]))


def latents(count=300):
    """Latents of an autoencoder, with numbers and a text of their own, and no text to colour."""
    rng = np.random.default_rng(3)
    size = rng.lognormal(-4, 1.5, count)
    pairs = [("loss", "total"), ("loss", "direct"), ("margin", "total")]
    means = np.stack([size, size * 0.4, -size], 1)
    data = {
        "decoder_norm": _labelled(rng.gamma(8, 0.2, count), "latent", "norm of the decoder's row"),
        "density": _labelled(rng.beta(1, 30, count), "latent", "share of tokens it is active at"),
        "effect_mean": _labelled(means, ("latent", "effect"), "mean effect", "see effect_units"),
        "effect_abs_mean": _labelled(np.abs(means), ("latent", "effect"), "mean |effect|", ""),
        "dead": ("latent", size < 0.002, {"long_name": "whether it is never active"}),
        "explanation": (
            "latent",
            np.array([f"about {NASTY if i == 7 else i}" for i in range(count)], object),
            {"long_name": "what somebody says it is about"},
        ),
    }
    coords = {"latent": ("latent", np.arange(count), {"long_name": "row of the decoder"})}
    coords["split"] = ("latent", np.where(np.arange(count) % 3, "train", "test").astype(object))
    return xr.Dataset(data, coords | _effects("effect", pairs, ["nats", "nats", "logits"]))


def partners(ours=40, theirs=500):
    """Neurons against those of another model, and moments of either."""
    rng = np.random.default_rng(4)
    r = np.tanh(rng.normal(0, 0.25, (ours, theirs)))
    r[3, 17], r[8, 400] = 0.97, -0.91
    data = {
        "correlation": _labelled(
            r.astype("f4"), ("neuron", "partner"), "Pearson's r over kept tokens"
        ),
        "neuron_moment": _labelled(
            rng.gamma(2, 3, (2, ours)), ("moment", "neuron"), "sums of powers of the activation"
        ),
    }
    coords = {
        "neuron": np.array([f"11.{i}" for i in range(ours)], object),
        "layer": ("neuron", np.full(ours, 11)),
        "index": ("neuron", np.arange(ours)),
        "partner": np.array([f"5.{i}" for i in range(theirs)], object),
        "moment": np.array(["sum", "sum of squares"], object),
    }
    return xr.Dataset(data, coords)


def digits(neurons=32, images=360):
    """Hidden neurons against images: no text, no language model."""
    rng = np.random.default_rng(5)
    cube = rng.normal(0, 0.02, (neurons, images, 2)) * rng.lognormal(0, 1, (neurons, 1, 1))
    digit = np.arange(images) % 10
    cube[5, digit == 3] += 0.4
    pairs = [("cross_entropy", "total"), ("predicted", "total")]
    data = {
        "effects": _labelled(cube.astype("f4"), ("neuron", "image", "effect"), "change", ""),
        "effect_abs_mean": _labelled(
            np.abs(cube).mean(1), ("neuron", "effect"), "mean |effect| over images", ""
        ),
        "cross_entropy": _labelled(rng.gamma(1, 0.2, images), "image", "unablated loss", "nats"),
        "accuracy": _labelled(0.97, (), "share of images that are right"),
    }
    coords = {
        "neuron": np.array([f"0.{i}" for i in range(neurons)], object),
        "image": ("image", np.arange(images), {"long_name": "image of the test set"}),
        "digit": ("image", digit, {"long_name": "what it shows"}),
    }
    return xr.Dataset(data, coords | _effects("effect", pairs, ["nats", "1"]), ATTRIBUTES_OF_OTHERS)


def scalars():
    """Nothing but numbers and a word of the whole."""
    return xr.Dataset(
        {
            "brier_score": _labelled(0.1234, (), "mean squared error of the probabilities"),
            "expected_calibration_error": _labelled(0.05, (), "gap of confidence and accuracy"),
            "mean_loss": _labelled(2.5, (), "mean loss over kept tokens", "nats"),
            "verdict": ((), "calibrated", {"long_name": "in a word"}),
        },
        attrs={"recipe": "calibration", "brier_score": 0.1234},
    )


def strange():
    """Every further combination of axes: three subjects, two texts, no labels, other types."""
    rng = np.random.default_rng(6)
    text = _text()
    data = {
        "three": _labelled(rng.normal(size=(3, 4, 5)), ("a", "b", "c"), "of three axes", "m"),
        "pair_in_text": _labelled(rng.normal(size=(3, 4, 60)), ("a", "b", "token"), "along text"),
        "logit": _labelled(rng.normal(size=(60, 3)), ("token", "effect"), "of each quantity", ""),
        "of_quantity": _labelled([1.0, 2.0, 3.0], "effect", "a number per quantity"),
        "quantity_pairs": _labelled(rng.normal(size=(3, 2)), ("effect", "other_q"), "two kinds"),
        "unlabelled": _labelled(rng.normal(size=7), "trial", "no labels", "s"),
        "flag": (("a", "b"), rng.random((3, 4)) > 0.5, {"long_name": "true or false"}),
        "names": (("a", "b"), np.full((3, 4), "x", object), {"long_name": "texts of two axes"}),
        "speech": ("token", np.full(60, "noun", object), {"long_name": "part of speech"}),
        "count": ("token", np.arange(60), {"long_name": "a label without units"}),
        "everything": _labelled(np.full((3, 60), np.nan), ("a", "token"), "not a number at all"),
        "nothing": _labelled(np.zeros((0, 3)), ("empty", "a"), "of no size"),
    }
    coords = {
        "a": np.array(["x", "y", "z"], object),
        "b": np.array([0.1, 0.2, 0.4, 0.8]),
        "c": np.arange(5),
        "empty": np.array([], object),
        "other_q": np.array(["left", "right"], object),
        "other_q_units": ("other_q", np.array(["m", "s"], object)),
    }
    pairs = [("loss", "total"), ("margin", "total"), ("margin", "direct")]
    return xr.Dataset(data, coords | text | _effects("effect", pairs, ["nats", "1", "1"]))


ATTRIBUTES_OF_OTHERS = {"recipe": "digits", "model": "mlp", "complete": 1}

OTHERS = {
    "steering": steering,
    "latents": latents,
    "partners": partners,
    "digits": digits,
    "scalars": scalars,
    "strange": strange,
}
"""Datasets of recipes that nobody has seen, by name."""
