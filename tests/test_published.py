"""Numbers that papers print, of models of the Hub: where their weights are on this machine.

Each test is skipped, by name, where its model is not in the Hub's cache. Fetch one with
``huggingface-cli download REPOSITORY``.
"""

from __future__ import annotations

import numpy as np
import pytest
from huggingface_hub import try_to_load_from_cache

import confreg

pytestmark = [pytest.mark.model, pytest.mark.slow]

MEDIUM = "stanford-crfm/arwen-gpt2-medium-x21"
# Of the code of arXiv 2401.12181: norm, skew, kurtosis and variance of cos(w_out, W_U).
GURNEE = {
    "23.2042": (0.7899, -3.477, 52.41, 6.25e-4),
    "19.1169": (0.4906, 4.060, 44.85, 1.18e-3),
}
# Of arXiv 2509.10663: LogitVar and share of the norm in the null space, of the last layer.
TIGHIDET = {
    "gpt2": {584: (2.456e-5, 0.9921), 2123: (6.95e-5, 0.9810)},
    "microsoft/phi-1_5": {1121: (1.64e-5, 0.992)},
    "EleutherAI/pythia-1.4b": {5104: (1.57e-4, 0.989)},
    "meta-llama/Meta-Llama-3-8B": {2564: (4.62e-5, 0.963)},
    "mistralai/Mistral-7B-v0.1": {3686: (1.75e-5, 0.982)},
}
NULL_DIMS = {"gpt2": 40, "microsoft/phi-1_5": 48, "EleutherAI/pythia-1.4b": 48}
"""k of the paper; 96 of the others."""


def need(repository: str) -> None:
    """Skip where a model was not fetched before."""
    if not isinstance(try_to_load_from_cache(repository, "config.json"), str):
        pytest.skip(f"{repository} is not in the cache of the Hub on this machine")


def census(repository: str, neurons: str, out, **parameters):
    return confreg.run(
        "census", model=repository, neurons=neurons, dtype="float32", progress=False,
        out=out / "census.zarr", **parameters,
    ).load()  # fmt: skip


def test_prediction_and_suppression_neurons_of_gpt2_medium(tmp_path):
    need(MEDIUM)
    ds = census(MEDIUM, ",".join(GURNEE), tmp_path)
    for name, (_, skew, kurtosis, variance) in GURNEE.items():
        one = ds.sel(neuron=name)
        assert float(one["vocab_skew"]) == pytest.approx(skew, rel=0.02)
        assert float(one["vocab_kurtosis"]) == pytest.approx(kurtosis, rel=0.02)
        assert float(one["logit_var"]) == pytest.approx(variance, rel=0.02)
    assert ds["role"].sel(neuron="23.2042").item() == "suppression"
    assert ds["role"].sel(neuron="19.1169").item() == "prediction"


def test_the_entropy_neuron_of_gpt2_medium_moves_all_logits_alike(tmp_path):
    need(MEDIUM)
    ds = census(MEDIUM, "23:0-4095", tmp_path)
    assert ds["neuron"].values[int(np.argmin(ds["logit_var"].values))] == "23.945"


@pytest.mark.parametrize("repository", sorted(TIGHIDET))
def test_entropy_neurons_in_weight_space(repository, tmp_path):
    need(repository)
    known = TIGHIDET[repository]
    names = ",".join(f"-1:{index}" for index in known)
    ds = census(repository, names, tmp_path, null_dims=NULL_DIMS.get(repository, 96))
    for index, (variance, share) in known.items():
        one = ds.isel(neuron=ds["index"].values.tolist().index(index))
        assert float(one["logit_var"]) == pytest.approx(variance, rel=0.05)
        assert float(one["null_fraction"]) == pytest.approx(share, abs=0.01)
