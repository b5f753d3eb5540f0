"""The census against numpy in float64, on the weights that transformers holds."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import zoo
from effects_case import site_of
from effects_oracle import LastLayer
from scipy import stats

import confreg
from confreg import effects as fx

ARCHITECTURES = [
    "gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma", "phi3", "olmo", "opt", "phi",
    "stablelm", "starcoder2", "falcon", "cohere2", "gpt_bigcode", "gptj", "arcee", "codegen",
    "nemotron",
]  # fmt: skip


def written(judge, layer):
    """What neurons of a layer add to the residual, (width, d) float64: the down-projection called
    on each alone."""
    down = judge.network.get_submodule(judge.down.format(layer))
    width = down.weight.shape[0 if type(down).__name__ == "Conv1D" else 1]
    with torch.no_grad():
        out = down(torch.cat([torch.eye(width), torch.zeros(1, width)]).double())
    return (out[:-1] - out[-1:]).numpy()


def unembedding(judge, shifted):
    """W_U diag(γ) over owned rows, not centred, float64."""
    norm = judge.network.get_submodule(judge.norm)
    weight = getattr(norm, "weight", None)
    gain = 1.0 if weight is None else weight.detach().double().numpy() + shifted
    head = judge.network.get_output_embeddings().weight.detach().double().numpy()
    return (head * gain)[: zoo.VOCAB]


def cosines(w, folded, centred, softcap=False):
    """cos(w, Ŵ_t), (n, V)."""
    if not softcap:
        folded = folded - folded.mean(0)
    if centred:
        folded = folded - folded.mean(1, keepdims=True)
        w = w - w.mean(1, keepdims=True)
    lengths = np.linalg.norm(w, axis=1)[:, None] * np.linalg.norm(folded, axis=1)
    return w @ folded.T / lengths, np.linalg.norm(w, axis=1), folded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_is_numpy_s(checkpoint, tmp_path, architecture):
    ds = confreg.run(
        "census", model=str(checkpoint(architecture)), out=tmp_path / "c.zarr", progress=False,
        top=4,
    ).load()  # fmt: skip
    network, _ = zoo.tiny(architecture)
    judge = oracle.Oracle(network)
    centred = "LayerNorm" in type(judge.network.get_submodule(judge.norm)).__name__
    folded = unembedding(judge, float(architecture in ("gemma", "nemotron")))
    assert ds.sizes["neuron"] == len(set(ds["neuron"].values)) == 3 * 48
    k = int(ds["null_dims"])
    for layer in range(3):
        here = ds.isel(neuron=ds["layer"].values == layer)
        c, norm, rows = cosines(written(judge, layer), folded, centred)
        close = {"rtol": 2e-4, "atol": 2e-5}
        np.testing.assert_allclose(here["w_out_norm"], norm, **close)
        np.testing.assert_allclose(here["vocab_mean"], c.mean(1), **close)
        np.testing.assert_allclose(here["logit_var"], c.var(1, ddof=1), **close)
        np.testing.assert_allclose(here["vocab_skew"], stats.skew(c, axis=1), atol=2e-4)
        kurtosis = stats.kurtosis(c, axis=1, fisher=False)
        np.testing.assert_allclose(here["vocab_kurtosis"], kurtosis, rtol=2e-4)
        order = np.argsort(c, axis=1)
        np.testing.assert_array_equal(here["raised"], order[:, :-5:-1])
        np.testing.assert_array_equal(here["lowered"], order[:, :4])
        w = written(judge, layer)
        w = w - w.mean(1, keepdims=True) if centred else w
        _, _, right = np.linalg.svd(rows)
        share = np.linalg.norm(w @ right[-k:].T, axis=1) / norm
        np.testing.assert_allclose(here["null_fraction"], share, **close)
        percentile = [stats.percentileofscore(norm, x) for x in norm]
        np.testing.assert_allclose(here["w_out_norm_percentile"], percentile, atol=1e-3)


@pytest.mark.parametrize("architecture", ["gemma2", "olmo2", "granite"])
def test_it_agrees_with_the_statistics_of_one_layer(checkpoint, words, tmp_path, architecture):
    """Through norms after the MLP, softcaps and multipliers, which those are tested with."""
    model = str(checkpoint(architecture))
    every = confreg.run("census", model=model, out=tmp_path / "c.zarr", progress=False).load()
    last = confreg.run(
        "entropy_neurons", model=model, text=words, out=tmp_path / "e.zarr", progress=False,
        sequence_length=16, max_tokens=20,
    ).load()  # fmt: skip
    every = every.sel(neuron=last["neuron"].values)
    for name in ("w_out_norm", "logit_var", "null_fraction"):
        np.testing.assert_allclose(every[name], last[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_a_neuron_that_writes_one_token_has_a_kurtosis_near_the_vocabulary_s_size():
    """Rows e_t, w = e_7: c is one 1 and else 0. The published reduction tables' slip,
    (c − mean/σ)⁴, would give about 1."""
    layer = LastLayer()
    layer.head.weight.data[:] = 0
    layer.head.weight.data[:16] = torch.eye(16)
    layer.norm.weight.data[:] = 1 - float(layer.norm.shifted)
    layer.down.weight.data[:, 5] = torch.eye(16)[7]
    layer.down.weight.data[:, 6] = -torch.eye(16)[7]
    owned = torch.arange(97) < 16
    with torch.no_grad():
        found = fx.vocabulary_statistics(
            site_of(layer), torch.tensor([5, 6]), torch.zeros(1, 16), owned=owned,
            centre_vocabulary=False, top=1,
        )  # fmt: skip
    c = np.eye(16)[7]
    assert found["vocab_kurtosis"][0] == pytest.approx(stats.kurtosis(c, fisher=False), rel=1e-5)
    assert found["vocab_kurtosis"][0] > 16 - 2
    assert found["vocab_skew"][0] > 3
    assert found["vocab_skew"][1] < -3
    assert found["raised"][0] == 7
    assert found["lowered"][1] == 7


@pytest.mark.parametrize("memory", [2**29, 4000])
@pytest.mark.parametrize("size", [20.0, 1e4])
def test_a_common_row_and_little_memory_cost_no_digits(memory, size):
    layer = LastLayer(centred=True, norm_bias=True, head_bias=True)
    layer.head.weight.data += size * torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    layer = layer.double()
    owned = torch.arange(97) < 91
    owned[[0, 13]] = False
    like = torch.zeros(1, 16).double()
    with torch.no_grad():
        found = fx.vocabulary_statistics(
            site_of(layer), torch.arange(24), like, owned=owned, memory=memory, top=3
        )
    gain = layer.norm.weight.detach().double().numpy() + float(layer.norm.shifted)
    folded = layer.head.weight.detach().numpy()[owned] * gain
    c, _, _ = cosines(layer.down.weight.detach().double().numpy().T, folded, True)
    np.testing.assert_allclose(found["logit_var"], c.var(1, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(
        found["vocab_kurtosis"], stats.kurtosis(c, axis=1, fisher=False), rtol=1e-3
    )
    ids = np.flatnonzero(owned)
    np.testing.assert_array_equal(found["raised"], ids[np.argsort(c, axis=1)[:, :-4:-1]])


def test_roles_follow_their_rule(checkpoint, tmp_path):
    """Thresholds are parameters: each moves the numbers on which it is said to act."""
    ds = confreg.run(
        "census", model=str(checkpoint("llama")), out=tmp_path / "c.zarr", progress=False,
        kurtosis_above=3.0, variance_above=0.05, norm_quantile=0.5,
    ).load()  # fmt: skip
    expected = []
    for i in range(ds.sizes["neuron"]):
        one = ds.isel(neuron=i)
        if one["vocab_kurtosis"] > 3:
            expected.append("prediction" if one["vocab_skew"] > 0 else "suppression")
        elif one["logit_var"] > 0.05:
            expected.append("partition")
        elif one["w_out_norm_percentile"] >= 50 and one["null_fraction"] > float(
            ds["null_fraction_chance_max"]
        ):
            expected.append("entropy")
        else:
            expected.append("other")
    assert ds["role"].values.tolist() == expected
    assert len(set(expected)) >= 3, "nothing to tell apart"


def test_some_neurons_can_be_named(checkpoint, tmp_path):
    ds = confreg.run(
        "census", model=str(checkpoint("gpt2")), out=tmp_path / "c.zarr", progress=False,
        neurons="0:3-5,2:7",
    ).load()  # fmt: skip
    assert ds["neuron"].values.tolist() == ["0.3", "0.4", "0.5", "2.7"]
    first = ds["raised_text"].values[0]
    assert first.count("'") == 20, first
