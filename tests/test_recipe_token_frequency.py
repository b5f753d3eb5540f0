"""Token-frequency neurons against plain transformers, and the counts behind them."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
import zoo

import confreg
from confreg import cli, tokens
from confreg.errors import ConfregError
from confreg.tokens import counts

LENGTH = 16


def run(checkpoint, words, out, architecture="llama", **options):
    options = {"sequence_length": LENGTH, "max_tokens": 60, "progress": False, **options}
    return confreg.run(
        "token_frequency_neurons", model=str(checkpoint(architecture)), text=words, out=out,
        **options,
    ).load()  # fmt: skip


def direction(words, tokenizer):
    """p_freq and v over the rows that a token owns, in float64, counted by hand."""
    found = np.zeros(zoo.ROWS)
    for document in words:
        for token in tokenizer(document, add_special_tokens=False)["input_ids"]:
            found[token] += 1
    p = (found[: zoo.VOCAB] + 1) / (found[: zoo.VOCAB] + 1).sum()
    v = np.zeros(zoo.ROWS)
    v[: zoo.VOCAB] = np.log(p) - np.log(p).mean()
    return torch.from_numpy(p), torch.from_numpy(v / np.linalg.norm(v))


def kl(p, logits):
    log_q = logits.log_softmax(-1)[..., : zoo.VOCAB]
    return (p * (p.log() - log_q)).sum(-1)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "olmo2"])
@pytest.mark.parametrize(("engine", "layer"), [("auto", 2), ("forward", 1)])
def test_effects_are_the_oracle_s(checkpoint, words, tmp_path, architecture, engine, layer):
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture, engine=engine, layer=layer,
        neurons=f"{layer}:3-5",
    )  # fmt: skip
    network, tokenizer = zoo.tiny(architecture)
    table = tokens.cut(tokens.read(words), tokenizer, LENGTH, 60)
    p, v = direction(words, tokenizer)
    judge = oracle.Oracle(network)
    for s, sequence in enumerate(table.sequences):
        ids = torch.from_numpy(sequence)[None]
        here = ds.isel(token=ds["sequence"].values == s)
        clean, _ = judge.forward(ids)
        np.testing.assert_allclose(here["kl_frequency"], kl(p, clean)[0], atol=1e-4)
        for i, neuron in enumerate((3, 4, 5)):
            value = float(ds["ablation_value"][i])
            total = judge.replaced(ids, layer, {neuron: value})
            frozen = total + ((clean - total) @ v)[..., None] * v
            truth = {
                "loss_total": oracle.loss(total, ids) - oracle.loss(clean, ids),
                "loss_frequency_direct": oracle.loss(frozen, ids) - oracle.loss(clean, ids),
                "entropy_total": oracle.entropy(total) - oracle.entropy(clean),
                "kl_frequency_total": kl(p, total) - kl(p, clean),
                "kl_frequency_frequency_direct": kl(p, frozen) - kl(p, clean),
            }
            assert list(truth) == ds["effect"].values.tolist()
            for name, expected in truth.items():
                found = here["effects"].isel(neuron=i).sel(effect=name)
                np.testing.assert_allclose(found, expected[0], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma"])
@pytest.mark.parametrize("centred", [False, True])
def test_cosines_of_every_layer(checkpoint, words, tmp_path, architecture, centred):
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture, all_layers=True,
        centre_vocabulary=centred,
    )  # fmt: skip
    network, tokenizer = zoo.tiny(architecture)
    judge = oracle.Oracle(network)
    _, v = direction(words, tokenizer)
    norm = judge.network.get_submodule(judge.norm).weight.detach()
    gain = norm + 1 if architecture == "gemma" else norm
    head = judge.network.get_output_embeddings().weight.detach()
    for layer in range(3):
        down = judge.network.get_submodule(judge.down.format(layer)).weight.detach()
        w = down if architecture == "gpt2" else down.T  # (width, d)
        if architecture == "gpt2":
            w = w - w.mean(-1, keepdim=True)
        u = (w * gain) @ head.T
        if centred:  # then it is Pearson's r
            u = u - u[:, : zoo.VOCAB].mean(-1, keepdim=True)
        expected = u @ v / u[:, : zoo.VOCAB].norm(dim=-1)
        np.testing.assert_allclose(ds["frequency_cosine_all"][layer], expected, atol=1e-5)
    np.testing.assert_array_equal(ds["frequency_cosine"], ds["frequency_cosine_all"][2])


def test_padding_rows_take_no_part(checkpoint, words, tmp_path):
    """Counts at rows that no token owns change nothing: not p_freq, not v, not the cosines."""
    plain_counts = counts.count(tokens.read(words), zoo.tokenizer(), zoo.ROWS).values
    found = []
    for name, extra in (("a", 0), ("b", 10**6)):
        values = plain_counts.copy()
        values[zoo.VOCAB :] += extra
        np.save(tmp_path / f"{name}.npy", values)
        at = str(tmp_path / f"{name}.npy")
        found.append(run(checkpoint, words, tmp_path / f"{name}.zarr", counts=at, neurons="2:0-4"))
    for name in ("effects", "kl_frequency", "frequency_cosine"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_the_share_is_a_ratio_of_means_over_kept_tokens(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", neurons="2:0-4")
    kept = abs(ds["effects"].isel(token=ds["keep"].values)).mean("token")
    te, de = kept.sel(effect="loss_total"), kept.sel(effect="loss_frequency_direct")
    np.testing.assert_allclose(ds["mediated"], 1 - de / te, rtol=1e-5, atol=1e-5)
    assert ds.attrs["mediated_direct"] == "loss_frequency_direct"
    assert ds.attrs["counts_tokens"] == sum(len(d.split()) for d in words)
    assert "coarse" in ds.attrs["counts_warning"]


def test_other_counts_are_another_configuration(checkpoint, words, tmp_path):
    out = tmp_path / "o.zarr"
    run(checkpoint, words, out, neurons="2:0")
    np.save(tmp_path / "c.npy", np.arange(zoo.ROWS))
    with pytest.raises(ConfregError, match="counts_sha256"):
        run(checkpoint, words, out, neurons="2:0", counts=str(tmp_path / "c.npy"))


def test_the_command_counts_what_the_recipe_reads(checkpoint, words, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words))
    for suffix in ("npy", "csv"):
        out = tmp_path / f"counts.{suffix}"
        cli.main(["counts", str(text), "-o", str(out), "--model", str(checkpoint("llama"))])
        assert "coarse" in capsys.readouterr().err
        found = counts.load(out, zoo.ROWS).values
        # The tiny tokenizer has no w0 and w1: it reads them as w2.
        ids = [max(int(word[1:]), 2) for word in text.read_text().split()]
        expected = np.bincount(ids, minlength=zoo.ROWS)
        np.testing.assert_array_equal(found, expected)
