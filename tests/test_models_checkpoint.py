"""Checkpoints that are damaged, incomplete, or hold what a model does not take."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

from confreg import models
from confreg.errors import ConfregError


@pytest.fixture
def folder(tmp_path):
    """A checkpoint in one file."""
    return save_whole(tmp_path / "model")


def save_whole(folder, **overrides):
    network, words = zoo.tiny("llama", **overrides)
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def change(file, **content):
    file.write_text(json.dumps(json.loads(file.read_text()) | content))


def with_weights(folder, change):
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("left", [0, 4, 1000, -100])
def test_a_file_of_weights_that_is_cut_off_is_named(folder, left):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ConfregError, match=r"model.safetensors of .* is empty, cut off or damaged"):
        models.load(str(folder))


@pytest.mark.parametrize("left", [0, 1000, -100])
def test_so_is_an_older_one(folder, left):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(weights, file)
    models.load(str(folder))
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ConfregError, match=r"pytorch_model.bin of .* is empty, cut off or damaged"):
        models.load(str(folder))


def test_a_missing_shard_is_named(tmp_path):
    folder = zoo.save("llama", tmp_path / "model")
    next(folder.glob("*-00002-of-*.safetensors")).unlink()
    with pytest.raises(ConfregError, match=r"lacks 1 of its \d+ files .*-00002-of-.*index.json"):
        models.load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", '{"model_type": "lla', "[1, 2]"])
def test_json_that_is_damaged_is_a_sentence(folder, name, content):
    (folder / name).write_text(content)
    part = "tokenizer" if "tokenizer" in name else "config"
    with pytest.raises(ConfregError, match=rf"(?s){part}.*model") as error:
        models.load(str(folder))
    assert "\n" not in str(error.value)


def test_a_configuration_of_other_shapes_is_a_sentence(folder):
    change(folder / "config.json", intermediate_size=40)
    with pytest.raises(ConfregError, match=r"9 of the weights of .* other shapes .*\(32, 40\)"):
        models.load(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "mine", "rope_theta": 1e4}}, "mine"),
        ({"hidden_act": "mine"}, "mine"),
        ({"num_attention_heads": 5}, "validate_architecture.*hidden size"),
        ({"hidden_size": "wide"}, "hidden_size.*wide"),
        ({"dtype": "float7"}, "float7"),
        ({"num_hidden_layers": -1}, "does not take"),
    ],
)
def test_a_configuration_that_makes_no_model_is_a_sentence(folder, changes, message):
    change(folder / "config.json", **changes)
    with pytest.raises(ConfregError, match=rf"model .*{message}|{message}") as error:
        models.load(str(folder))
    assert "\n" not in str(error.value)


def test_layers_that_the_configuration_leaves_out_are_not_dropped(folder):
    change(folder / "config.json", num_hidden_layers=2)
    with pytest.raises(ConfregError, match=r"holds 9 weights .*does not take \(model.layers.2"):
        models.load(str(folder))


def test_weights_that_no_module_takes_are_not_dropped(folder):
    with_weights(folder, lambda w: w.update({"model.layers.1.mlp.down_proj.bias": torch.ones(32)}))
    with pytest.raises(
        ConfregError, match=r"holds 1 weights .*\(model.layers.1.mlp.down_proj.bias"
    ):
        models.load(str(folder))


def test_rotary_frequencies_of_an_older_checkpoint_must_be_those_that_are_computed(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    usual = 1 / 10_000 ** (torch.arange(0, 8, 2) / 8)
    with_weights(folder, lambda w: w.update({name: usual}))
    models.load(str(folder))
    with_weights(folder, lambda w: w.update({name: usual / 4}))
    with pytest.raises(ConfregError, match=r"rotary_emb.inv_freq, which differs"):
        models.load(str(folder))


def test_masks_that_older_checkpoints_hold_are_no_obstacle(tmp_path):
    """GPT-J of the Hub has them; a mask of a window that the configuration lacks is none."""
    network, tokenizer = zoo.tiny("gptj")
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    causal = torch.ones(64, 64).tril()
    masks = {f"transformer.h.{i}.attn.bias": causal[None, None].clone() for i in range(3)}
    hidden = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    with_weights(tmp_path, lambda w: w.update(masks | hidden))
    models.load(str(tmp_path))
    name = "transformer.h.1.attn.bias"
    for other in (causal.triu(-8), torch.eye(64), torch.full((64, 64), 1.0)):
        with_weights(tmp_path, lambda w, other=other: w.update({name: other.contiguous()}))
        with pytest.raises(ConfregError, match=rf"holds 1 weights .*\({name}\)"):
            models.load(str(tmp_path))


def test_a_tied_unembedding_that_was_stored_apart_counts(tmp_path):
    """Equal to the embedding it is the same model; else it is another, and transformers unties."""
    folder = save_whole(tmp_path / "model", tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    with_weights(folder, lambda w: w.update({"lm_head.weight": embedding.clone()}))
    models.load(str(folder))
    with_weights(folder, lambda w: w.update({"lm_head.weight": embedding * 2}))
    model = models.load(str(folder))
    assert torch.equal(model.nn._module.lm_head.weight, embedding * 2)
    assert torch.equal(model.nn._module.model.embed_tokens.weight, embedding)


def test_an_adapter_beside_a_model_is_refused_with_peft_and_without(folder, monkeypatch):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for absent in (False, True):
        if absent:
            monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ConfregError, match=r"a model and an adapter .*--adapter"):
            models.load(str(folder))


def test_an_adapter_alone_says_what_it_needs(tmp_path):
    content = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfregError, match=r"--adapter \(it was made for owner/base\)"):
        models.describe(str(tmp_path))


@pytest.mark.parametrize("native", [False, True])
def test_code_in_a_models_folder_is_never_run(folder, tmp_path, monkeypatch, native):
    """Nor is anything asked: with an architecture of transformers' own, that one is used."""
    ran = tmp_path / "ran"
    for module in ("configuration", "modeling", "tokenization"):
        (folder / f"{module}_mine.py").write_text(
            f"open({str(ran)!r}, 'w')\n"
            "from transformers import LlamaConfig as Mine, LlamaForCausalLM as Net\n"
            "from transformers import PreTrainedTokenizerFast as Words\n"
        )
    own = {
        "AutoConfig": "configuration_mine.Mine",
        "AutoModelForCausalLM": "modeling_mine.Net",
    }
    change(folder / "config.json", auto_map=own, model_type="llama" if native else "mine")
    change(
        folder / "tokenizer_config.json",
        auto_map={"AutoTokenizer": [None, "tokenization_mine.Words"]},
    )

    def asked(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", asked)
    if native:
        model = models.load(str(folder))
        reference, _ = zoo.tiny("llama")
        assert torch.equal(model.nn._module.lm_head.weight, reference.lm_head.weight)
    else:
        with pytest.raises(ConfregError, match="never runs code"):
            models.load(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_that_a_configuration_names_is_not_fetched(folder, key):
    change(folder / "config.json", **{key: "kernels-community/flash-attn"})
    with pytest.raises(ConfregError, match=r"'kernels-community/flash-attn' of the Hub"):
        models.load(str(folder))


def test_a_damaged_copy_does_not_touch_the_store(folder, words, tmp_path):
    import confreg

    out = tmp_path / "o.zarr"
    options = {"text": words, "out": out, "neurons": "2:0-3", "progress": False}
    options |= {"sequence_length": 16, "max_tokens": 48}
    confreg.run("entropy_neurons", model=str(folder), **options)
    before = sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*"))
    shutil.copy(folder / "model.safetensors", tmp_path / "whole")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfregError):
        confreg.run("entropy_neurons", model=str(folder), **options)
    assert sorted((p, p.stat().st_mtime_ns) for p in out.rglob("*")) == before
