"""The census against numpy in float64, on the weights that transformers holds."""

from __future__ import annotations

from types import SimpleNamespace

import gguf_file
import numpy as np
import oracle
import pytest
import torch
import zoo
from effects_case import site_of
from effects_oracle import LastLayer
from safetensors.torch import save_file
from scipy import stats
from transformer_lens.weight_processing import ProcessWeights

import confreg
from confreg import ConfregError, models
from confreg import effects as fx
from confreg.effects import vocabulary
from confreg.report import sections

ARCHITECTURES = [
    "gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma", "phi3", "olmo", "opt", "phi",
    "stablelm", "starcoder2", "falcon", "cohere2", "gpt_bigcode", "gptj", "arcee", "codegen",
    "nemotron",
]  # fmt: skip


READ = {
    "gpt2": ("mlp.c_fc", "", "ln_2"),
    "gpt_neox": ("mlp.dense_h_to_4h", "", "post_attention_layernorm"),
    "llama": ("mlp.up_proj", "mlp.gate_proj", "post_attention_layernorm"),
    "mistral": ("mlp.up_proj", "mlp.gate_proj", "post_attention_layernorm"),
    "qwen3": ("mlp.up_proj", "mlp.gate_proj", "post_attention_layernorm"),
    "gemma": ("mlp.up_proj", "mlp.gate_proj", "post_attention_layernorm"),
    "phi3": ("mlp.gate_up_proj", "mlp.gate_up_proj", "post_attention_layernorm"),
    "olmo": ("mlp.up_proj", "mlp.gate_proj", "post_attention_layernorm"),
    "opt": ("fc1", "", "final_layer_norm"),
    "phi": ("mlp.fc1", "", "input_layernorm"),
    "stablelm": ("mlp.up_proj", "mlp.gate_proj", "post_attention_layernorm"),
    "starcoder2": ("mlp.c_fc", "", "post_attention_layernorm"),
    "falcon": ("mlp.dense_h_to_4h", "", "input_layernorm"),
    "cohere2": ("mlp.up_proj", "mlp.gate_proj", "input_layernorm"),
    "gpt_bigcode": ("mlp.c_fc", "", "ln_2"),
    "gptj": ("mlp.fc_in", "", "ln_1"),
    "arcee": ("mlp.up_proj", "", "post_attention_layernorm"),
    "codegen": ("mlp.fc_in", "", "ln_1"),
    "nemotron": ("mlp.up_proj", "", "post_attention_layernorm"),
}


def read(judge, architecture, layer, centred, shifted):
    """Folded rows and biases of what neurons read, float64, by name."""
    up, gate, norm = READ[architecture]
    block = judge.network.get_submodule(judge.down.format(layer).split(f".{layer}.")[0])[layer]
    norm = block.get_submodule(norm)
    width = judge.network.get_submodule(judge.down.format(layer)).weight.numel() // 32
    weight = getattr(norm, "weight", None)
    gain = 1.0 if weight is None else weight.detach().double().numpy() + shifted
    shift = getattr(norm, "bias", None)
    shift = np.zeros(32) if shift is None else shift.detach().double().numpy()
    found = {}
    for name, path in (("in", up), ("gate", gate)):
        if not path:
            continue
        module = block.get_submodule(path)
        rows = module.weight.detach().double().numpy()
        rows = rows.T if type(module).__name__ == "Conv1D" else rows
        bias = getattr(module, "bias", None)
        bias = np.zeros(len(rows)) if bias is None else bias.detach().double().numpy()
        if up == gate:
            half = slice(width, None) if name == "in" else slice(width)
            rows, bias = rows[half], bias[half]
        bias, rows = bias + rows @ shift, rows * gain
        found[name] = (rows - rows.mean(1, keepdims=True) if centred else rows), bias
    return found


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def same_direction(architecture, here, read, out, centred):
    """Input norms, biases, cosines, and their p among all pairs of different neurons."""
    out = out - out.mean(1, keepdims=True) if centred else out
    close = {"rtol": 2e-4, "atol": 2e-5}
    np.testing.assert_allclose(here["w_in_norm"], np.linalg.norm(read["in"][0], axis=1), **close)
    np.testing.assert_allclose(here["input_bias"], read["in"][1], **close)
    assert ("gate" in read) == ("w_gate_norm" in here) == ("input_output" in here)
    rows = {name: unit(value) for name, (value, _) in read.items()} | {"out": unit(out)}
    t = {}
    for one, other in (("in", "out"), ("gate", "out"), ("gate", "in")):
        if one not in rows:
            assert f"{one}_{other}_cosine" not in here
            continue
        c = rows[one] @ rows[other].T
        np.testing.assert_allclose(here[f"{one}_{other}_cosine"], np.diag(c), **close)
        pairs = np.abs(c[~np.eye(len(c), dtype=bool)])
        p = [(1 + (pairs >= abs(x)).sum()) / (1 + len(pairs)) for x in np.diag(c)]
        np.testing.assert_allclose(here[f"{one}_{other}_p"], p, atol=1.5 / len(pairs))
        t[one, other] = np.where(np.abs(np.diag(c)) < 0.2, 0, np.sign(np.diag(c)))
    if "gate" in read:
        np.testing.assert_allclose(here["gate_bias"], read["gate"][1], **close)
        np.testing.assert_allclose(
            here["w_gate_norm"], np.linalg.norm(read["gate"][0], axis=1), **close
        )
        for i, said in enumerate(here["input_output"].values):
            a, b, c = t["in", "out"][i], t["gate", "out"][i], t["gate", "in"][i]
            word = {
                (1, True): "enrichment", (1, False): "conditional enrichment",
                (-1, True): "depletion", (-1, False): "conditional depletion",
                (0, True): "proportional change", (0, False): "orthogonal output",
            }[int(a), bool(b)]  # fmt: skip
            odd = word != "orthogonal output" and c != a * b
            assert said == ("atypical " if odd else "") + word


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


QUICK = ("gpt2", "llama", "phi3")
EVERY = [pytest.param(a, marks=() if a in QUICK else pytest.mark.slow) for a in ARCHITECTURES]


@pytest.mark.parametrize("architecture", EVERY)
def test_every_number_is_numpy_s(checkpoint, tmp_path, architecture):
    ds = confreg.run(
        "census", model=str(checkpoint(architecture)), out=tmp_path / "c.zarr", progress=False,
        top=4, cosine_above=0.2,
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
        shifted = float(architecture in ("gemma", "nemotron"))
        reads = read(judge, architecture, layer, centred, shifted)
        same_direction(architecture, here, reads, written(judge, layer), centred)
        cosine = here["in_out_cosine"].values
        percentile = [stats.percentileofscore(cosine, x) for x in cosine]
        np.testing.assert_allclose(here["in_out_cosine_percentile"], percentile, atol=1e-3)


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
            [site_of(layer)], [torch.tensor([5, 6])], torch.zeros(1, 16), owned=owned,
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
            [site_of(layer)], [torch.arange(24)], like, owned=owned, memory=memory, top=3
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


def test_the_extremes_are_those_of_a_sort_however_few_are_sorted():
    c = torch.randn(7, 64 * 40 + 13, generator=torch.Generator().manual_seed(0))
    c[2, -1], c[3, 1000] = 9, -9  # in the part that no group has, and within a group
    for largest in (True, False):
        order = c.sort(-1, descending=largest).indices[:, :9]
        np.testing.assert_array_equal(vocabulary.extremes(c, 9, largest), order)


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


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_directions_of_a_file_are_described_as_neurons_are(checkpoint, tmp_path, architecture):
    """A layer's output weights in a file give the numbers of the layer's neurons."""
    model = str(checkpoint(architecture))
    ds = confreg.run(
        "census", model=model, out=tmp_path / "c.zarr", progress=False, neurons="1:0-47", top=3
    ).load()
    rows = written(oracle.Oracle(zoo.tiny(architecture)[0]), 1).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    save_file(
        {"W_dec": torch.from_numpy(rows), "b_dec": torch.zeros(32), "W_skip": torch.zeros(2, 32)},
        tmp_path / "sae.safetensors",
    )
    for number, file in enumerate(("rows.npy", "sae.safetensors:W_dec")):
        given = confreg.run(
            "census", model=model, out=tmp_path / f"{number}.zarr", progress=False, top=3,
            directions=str(tmp_path / file),
        ).load()  # fmt: skip
        assert given["direction"].values.tolist() == [str(i) for i in range(48)]
        for name in ("w_out_norm", "null_fraction", "vocab_mean", "logit_var", "vocab_kurtosis"):
            np.testing.assert_allclose(given[name], ds[name], rtol=2e-5, atol=1e-6, err_msg=name)
        for name in ("raised", "lowered", "raised_text", "role"):
            np.testing.assert_array_equal(given[name], ds[name])
    for file, said in (
        ("sae.safetensors", r"2 tensors with rows of 32; say which as .*W_dec"),
        ("sae.safetensors:W_enc", r"no tensor 'W_enc'; it has"),
        ("gone.npy", r"no file .*gone.npy"),
    ):
        with pytest.raises(ConfregError, match=said):
            confreg.plan("census", model=model, directions=str(tmp_path / file), progress=False)
    np.save(tmp_path / "rows.npy", rows.T)
    with pytest.raises(ConfregError, match=r"shape \(32, 48\).*Transpose"):
        confreg.plan("census", model=model, directions=str(tmp_path / "rows.npy"), progress=False)


def test_a_family_whose_input_side_is_not_known_has_none(checkpoint, tmp_path):
    ds = confreg.run(
        "census", model=str(checkpoint("olmo_hybrid")), out=tmp_path / "c.zarr", progress=False,
        neurons="2:0-3",
    )  # fmt: skip
    assert "w_in_norm" not in ds
    assert "role" in ds


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "phi3"])
def test_offloaded_it_gives_the_same(tmp_path, architecture):
    zoo.save(architecture, tmp_path / "model")
    found = [
        confreg.run(
            "census", model=str(tmp_path / "model"), out=tmp_path / f"{profile}.zarr",
            progress=False, profile=profile, overrides=overrides, dtype="float32",
        ).load()
        for profile, overrides in (("memory", {}), ("offload", {"max_memory.cpu": "80kB"}))
    ]  # fmt: skip
    for name in ("w_in_norm", "in_out_cosine", "w_out_norm", "null_fraction", "vocab_kurtosis"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found[1]["raised"], found[0]["raised"])


def test_a_gguf_file_gives_the_numbers_of_its_model(tmp_path):
    network, _ = zoo.tiny("llama")
    path = str(gguf_file.write(tmp_path / "tiny.gguf", network))
    plain = models.Model.wrap(network, models.describe(path).tokenizer, "plain")
    found = [
        confreg.run("census", model=model, out=tmp_path / f"{n}.zarr", progress=False).load()
        for n, model in enumerate((plain, path))
    ]
    for name in ("w_in_norm", "gate_out_cosine", "null_fraction", "vocab_kurtosis", "logit_var"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5, err_msg=name)


def test_moments_are_those_of_the_weights_that_transformer_lens_folds(checkpoint, tmp_path):
    """Norms, input biases and cosines too: all that it folds into a layer's MLP."""
    ds = confreg.run(
        "census", model=str(checkpoint("gpt2")), out=tmp_path / "c.zarr", progress=False,
        neurons="2:0-47",
    ).load()  # fmt: skip
    network, _ = zoo.tiny("gpt2")
    body, last = network.transformer, network.transformer.h[-1]
    head = network.lm_head.weight[: zoo.VOCAB].T
    d, heads = 32, 4
    state = {
        "embed.W_E": body.wte.weight,
        "pos_embed.W_pos": body.wpe.weight,
        **{f"blocks.0.attn.W_{n}": torch.ones(heads, d, d // heads) for n in "QKV"},
        **{f"blocks.0.attn.b_{n}": torch.zeros(heads, d // heads) for n in "QKV"},
        "blocks.0.attn.W_O": last.attn.c_proj.weight.unflatten(0, (heads, d // heads)),
        "blocks.0.attn.b_O": last.attn.c_proj.bias,
        "blocks.0.ln1.w": last.ln_1.weight,
        "blocks.0.ln1.b": last.ln_1.bias,
        "blocks.0.ln2.w": last.ln_2.weight,
        "blocks.0.ln2.b": last.ln_2.bias,
        "blocks.0.mlp.W_in": last.mlp.c_fc.weight,
        "blocks.0.mlp.b_in": last.mlp.c_fc.bias,
        "blocks.0.mlp.W_out": last.mlp.c_proj.weight,
        "blocks.0.mlp.b_out": last.mlp.c_proj.bias,
        "ln_final.w": body.ln_f.weight,
        "ln_final.b": body.ln_f.bias,
        "unembed.W_U": head,
        "unembed.b_U": torch.zeros(zoo.VOCAB),
    }
    state = {name: tensor.detach().double().clone() for name, tensor in state.items()}
    size = SimpleNamespace(
        n_layers=1, d_model=d, d_vocab=zoo.VOCAB, n_heads=heads, d_head=d // heads, attn_only=False,
        act_fn="gelu_new", gated_mlp=False, n_key_value_heads=None, final_rms=False,
    )  # fmt: skip
    with torch.no_grad():
        for step in ("fold_layer_norm", "center_writing_weights", "center_unembed"):
            state = getattr(ProcessWeights, step)(state, size)
    state = {name: tensor.numpy() for name, tensor in state.items()}
    w_in, w_out = state["blocks.0.mlp.W_in"].T, state["blocks.0.mlp.W_out"]
    c = unit(w_out) @ unit(state["unembed.W_U"].T).T
    close = {"rtol": 1e-4, "atol": 2e-5}
    np.testing.assert_allclose(ds["vocab_mean"], c.mean(1), **close)
    np.testing.assert_allclose(ds["logit_var"], c.var(1, ddof=1), **close)
    np.testing.assert_allclose(ds["vocab_skew"], stats.skew(c, axis=1), **close)
    np.testing.assert_allclose(ds["vocab_kurtosis"], stats.kurtosis(c, 1, fisher=False), **close)
    np.testing.assert_allclose(ds["w_in_norm"], np.linalg.norm(w_in, axis=1), **close)
    np.testing.assert_allclose(ds["input_bias"], state["blocks.0.mlp.b_in"], **close)
    np.testing.assert_allclose(ds["in_out_cosine"], (unit(w_in) * unit(w_out)).sum(1), **close)


def test_a_plan_says_what_the_products_take(checkpoint):
    """2 · d · V · neurons; padding rows of the unembedding take no part."""
    plan = confreg.plan("census", model=str(checkpoint("llama")), neurons="1:0-7", progress=False)
    said = dict(plan.rows())["moments over the vocabulary"]
    work = 2 * 32 * zoo.VOCAB * 8 / 1e12
    assert said.endswith(f"no pass; {work:.1g} TFLOP in products with the vocabulary")


def test_the_page_shows_roles_classes_and_the_strongest(checkpoint, tmp_path):
    ds = confreg.run(
        "census", model=str(checkpoint("llama")), out=tmp_path / "c.zarr", progress=False,
        kurtosis_above=3.0, cosine_above=0.2,
    ).load()  # fmt: skip
    made = sections.REGISTRY[[e.make.__name__ for e in sections.REGISTRY].index("census")]
    found = made.make(ds, sections.Options())
    figures = {figure.key: figure.figure for figure in found.figures}
    for key, name in (("roles", "role"), ("input-output", "input_output")):
        total = 0
        for bar in figures[key].data:
            said = ds[name].values.astype(str)
            said = np.array([each.removeprefix("atypical ") for each in said])
            here = [(said[ds["layer"].values == layer] == bar.name).sum() for layer in range(3)]
            expected = np.array(here) / (48 if key == "input-output" else 1)
            np.testing.assert_allclose(bar.y, expected, err_msg=bar.name)
            total += sum(here)
        assert total > 20
    strongest = ds.isel(neuron=(ds["role"] == "suppression").values)
    top = str(strongest["neuron"].values[strongest["vocab_kurtosis"].argmax("neuron")])
    rows = [label for label, _, cells in found.data.rows if cells[0].text == "suppression"]
    assert rows[0] == top
