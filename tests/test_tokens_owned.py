"""Vocabularies with holes and padding rows, tokens beyond the rows, and text that has BOS."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import confreg
from confreg import ConfregError
from confreg.models import Model
from confreg.models.network import Network
from confreg.options import Options
from confreg.places import make
from confreg.places.profiles import load
from confreg.study import Study
from confreg.tokens import counts

HOLES = (5, 40, 90)
LAST = 99  # the id of one token, far behind the others: 94 to 98 are holes too


def holed():
    """94 ids and one more, of a model of 101 rows."""
    ids = [i for i in range(2, 94) if i not in HOLES] + [LAST]
    raw = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1} | {f"w{i}": i for i in ids}, "w2"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def network():
    return zoo.tiny("llama")[0]


@pytest.fixture(scope="module")
def text():
    draw = np.random.default_rng(3)
    usable = [i for i in range(2, 94) if i not in HOLES] + [LAST] * 9
    return [" ".join(f"w{i}" for i in draw.choice(usable, 40)) for _ in range(4)]


def run(network, tokenizer, text, recipe="token_frequency_neurons", **options):
    given = {"sequence_length": 64, "max_tokens": None, "neurons": "2:0-7", "progress": False}
    model = Model.wrap(network, tokenizer, name="tiny")
    return confreg.run(recipe, model=model, text=text, **(given | options))


def test_frequencies_are_over_the_tokens_that_there_are(network, text, tmp_path):
    tokenizer = holed()
    ds = run(network, tokenizer, text, per_document=True, out=tmp_path / "o.zarr")
    owned = np.zeros(zoo.ROWS, bool)
    owned[list(tokenizer.get_vocab().values())] = True
    assert owned.sum() == 92
    assert not owned[[*HOLES, 94, 100]].any()
    seen = np.zeros(zoo.ROWS)
    for document in text:
        for word in document.split():
            seen[int(word[1:])] += 1
    log_frequency = np.log((seen[owned] + 1) / (seen[owned] + 1).sum())
    plain = network.double()
    wanted, entropies = [], []
    for document in text:
        ids = [0, *(int(word[1:]) for word in document.split())]
        logits = plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
        every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        entropies.append(-(np.exp(every) * every).sum(-1))
        wanted.append((np.exp(log_frequency) * (log_frequency - every[:, owned])).sum(-1))
    plain.float()
    np.testing.assert_allclose(ds["kl_frequency"].values, np.concatenate(wanted), atol=2e-5)
    np.testing.assert_allclose(ds["entropy"].values, np.concatenate(entropies), atol=2e-5)


def test_counts_are_of_the_tokens_that_there_are():
    owned = np.zeros(10, bool)
    owned[[0, 1, 3]] = True
    found = counts.Counts(np.array([5, 0, 7, 1, 0, 0, 0, 0, 0, 2]), "a file").owned_by(owned)
    assert found.values.tolist() == [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert found.total == 6
    assert "a vocabulary of 3, of which 1 never occur" in found.warning
    assert counts.Counts(np.full(10, 10), "a text").owned_by(owned).warning == ""


def test_statistics_of_weights_are_over_the_tokens_that_there_are(network, text, tmp_path):
    tokenizer = holed()
    ds = run(network, tokenizer, text, "entropy_neurons", out=tmp_path / "o.zarr")
    owned = sorted(tokenizer.get_vocab().values())
    folded = (network.lm_head.weight * network.model.norm.weight).double().numpy()[owned]
    folded -= folded.mean(0)
    w = network.model.layers[2].mlp.down_proj.weight.double().numpy()[:, :8]
    cosines = folded @ w / np.linalg.norm(folded, axis=1)[:, None] / np.linalg.norm(w, axis=0)
    np.testing.assert_allclose(ds["logit_var"].values, cosines.var(0, ddof=1), rtol=1e-4)


def test_a_token_beyond_the_rows_is_a_sentence_before_anything_is_loaded(tmp_path):
    folder = zoo.save("llama", tmp_path / "model")
    tokenizer = zoo.tokenizer()
    tokenizer.add_tokens([f"new{i}" for i in range(8)])
    tokenizer.save_pretrained(folder)
    given = {"model": str(folder), "sequence_length": 16, "progress": False}
    fits = confreg.plan("entropy_neurons", text=["w3 w4 w5 new1 w6 w7"], **given)
    assert "token" in fits.axes
    with pytest.raises(ConfregError, match=r"token 104 \('new7'\).* rows for 101.*resize_token"):
        confreg.plan("entropy_neurons", text=["w3 w4 w5 new7 w6 w7"], **given)
    drawn = confreg.plan(
        "induction", repeats="random", length=90, max_tokens=400, neurons="2.1,2.2",
        **(given | {"sequence_length": 200, "model": str(zoo.save(
            "llama", tmp_path / "long", max_position_embeddings=256))}),
    )  # fmt: skip
    assert drawn.axes["token"].labels["token_id"].values.max() < zoo.ROWS


def test_bos_that_the_text_has_is_not_added_again(tmp_path):
    tokenizer = zoo.tokenizer()
    from confreg import tokens

    documents = ["<s> w3 w4 w5 w6", "w7 w8 w9 w10"]
    table = tokens.cut(tokens.read(documents), tokenizer, 16, None, per_document=True)
    assert [list(ids) for ids in table.sequences] == [[0, 3, 4, 5, 6], [0, 7, 8, 9, 10]]
    assert "holds <s>, which begins a sequence, 1 time." in table.warning
    bare = tokens.cut(tokens.read(documents), tokenizer, 16, None, per_document=True, bos="text")
    assert [list(ids) for ids in bare.sequences] == [[0, 3, 4, 5, 6], [7, 8, 9, 10]]
    assert bare.warning == ""
    usual = tokens.cut(tokens.read(documents[1:]), tokenizer, 16, None, per_document=True)
    assert [list(ids) for ids in usual.sequences] == [[0, 7, 8, 9, 10]]
    assert usual.warning == ""


def test_a_run_says_that_its_text_has_bos(network, tmp_path):
    text = ["<s> w3 w4 w5 w6 w7 w8"]
    ds = run(network, zoo.tokenizer(), text, "entropy_neurons", out=tmp_path / "a.zarr")
    assert "1 time" in ds.attrs["text_warning"]
    assert ds["token_id"].values.tolist() == [0, 3, 4, 5, 6, 7, 8]
    bare = run(
        network, zoo.tokenizer(), ["w3 w4 w5 w6 w7 w8"], "entropy_neurons",
        out=tmp_path / "b.zarr", bos="text",
    )  # fmt: skip
    assert bare["token_id"].values.tolist() == [3, 4, 5, 6, 7, 8]
    assert "text_warning" not in bare.attrs
    with pytest.raises(ConfregError, match="running text"):
        run(network, zoo.tokenizer(), text, "induction", bos="text", neurons="2.1,2.2")


def test_a_sample_of_the_text_is_held_to_the_same(network, tmp_path):
    """Means over the text as it is are over tokens that the model has, as all else is."""
    tokenizer = zoo.tokenizer()
    tokenizer.add_tokens([f"new{i}" for i in range(8)])
    about = Model.wrap(network, tokenizer, name="tiny").description
    options = Options.read({"text": ["w3 w4 w5 new7 w6 w7"], "sequence_length": 16})
    model = Network("tiny", about=about)
    study = Study(model, options, make(load("memory", None), options, model).budget)
    with pytest.raises(ConfregError, match=r"token 104 \('new7'\)"):
        study.sample()
    options = Options.read({"text": ["w3 w4 w5"], "sequence_length": 65})
    study = Study(model, options, make(load("memory", None), options, model).budget)
    with pytest.raises(ConfregError, match="positions for 64"):
        study.sample()
