"""Finding, describing and loading models; what is refused, and how."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import zoo
from hub import Hub
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from confreg import models
from confreg.errors import ConfregError
from confreg.models import classes, lookup


@pytest.fixture
def llama(checkpoint):
    return checkpoint("llama")


def test_description_needs_no_weights(llama, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    described = models.describe(str(tmp_path))
    network, _ = zoo.tiny("llama")
    assert described.architecture == "llama"
    assert (described.n_layers, described.n_neurons, described.d_model) == (3, 48, 32)
    assert (described.vocab_size, described.vocab_real) == (zoo.ROWS, zoo.VOCAB)
    assert described.parameters == sum(p.numel() for p in network.parameters())
    assert described.bytes == 4 * described.parameters
    assert described.max_length == 64


def test_tied_parameters_count_once(tmp_path):
    described = models.describe(str(zoo.save("qwen2", tmp_path)))
    assert described.sizes["lm_head"] == 0
    assert described.parameters == sum(p.numel() for p in zoo.tiny("qwen2")[0].parameters())


def test_layers_count_from_either_end(llama):
    described = models.describe(str(llama))
    assert [described.layer(i) for i in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for index in (3, -4):
        with pytest.raises(ConfregError, match=f"no layer {index}"):
            described.layer(index)


def test_loads_what_was_saved(llama):
    model = models.load(str(llama))
    network, _ = zoo.tiny("llama")
    with model.trace(zoo.tokens()):
        logits = model.unembedding.output.save()
    assert torch.equal(logits, network(zoo.tokens()).logits)
    assert not any(p.requires_grad for p in model.nn._module.parameters())
    assert repr(model).startswith("Model(")
    assert model.dtype == "float32"


def test_dtype_is_chosen(llama):
    model = models.load(str(llama), dtype="bf16")
    assert model.dtype == "bfloat16"
    assert model.torch_dtype == torch.bfloat16
    with pytest.raises(ConfregError, match=r"no dtype 'float13'.*bfloat16"):
        models.load(str(llama), dtype="float13")


def test_structure_only_has_the_same_names(llama):
    model = models.load(str(llama), weights=False)
    assert {p.device.type for p in model.nn._module.parameters()} == {"meta"}
    assert model.down_proj(-1).path == "model.model.layers.2.mlp.down_proj"
    assert model.readout == models.load(str(llama)).readout


def test_wrapping_leaves_the_network_as_it_is():
    network, tokenizer = zoo.tiny("gpt2")
    before = network(zoo.tokens()).logits
    model = models.Model.wrap(network, tokenizer, name="mine")
    assert model.name == "mine"
    assert model.nn._module is network
    assert torch.equal(network(zoo.tokens()).logits, before)


HUB = """
import sys
from confreg import models
from confreg.errors import ConfregError

model = models.load("owner/tiny@main")
print(model.name, model.revision, model.n_layers)
for name in ("owner/absent", "owner/tiny/more"):
    try:
        models.describe(name)
    except ConfregError as error:
        print(error)
"""


@pytest.mark.slow
def test_loads_from_the_hub(llama, tmp_path):
    (tmp_path / "hub" / "owner").mkdir(parents=True)
    (tmp_path / "hub" / "owner" / "tiny").symlink_to(llama)
    with Hub(tmp_path / "hub") as served:
        environment = os.environ | {"HF_ENDPOINT": served.url, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, check=True
        )
        found, absent, path = done.stdout.splitlines()
        assert found == f"owner/tiny {served.commit('owner/tiny')} 3"
    assert absent.startswith("There is no model 'owner/absent'")
    assert path.startswith("There is no file or folder 'owner/tiny/more'")


def test_unreachable_hub_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfregError, match="not in the local Hugging Face cache"):
        models.describe("owner/never-fetched")


def test_gated_models_say_how_to_log_in():
    from confreg.models.loading import _sentence
    from confreg.models.sources import Source

    class GatedRepoError(OSError):
        pass

    error = OSError("wrapped")
    error.__cause__ = GatedRepoError()
    sentence = _sentence(Source("meta/llama", "meta/llama"), "configuration", error)
    assert "hf auth login" in sentence


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "model.gguf"])
def test_paths_that_are_not_there(name):
    with pytest.raises(ConfregError, match="no file or folder"):
        models.describe(name)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ConfregError, match="holds no model"):
        models.describe(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(ConfregError, match=r"2 GGUF files \(a.gguf, b.gguf\)"):
        models.describe(str(tmp_path))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ConfregError, match="not a GGUF"):
        models.describe(str(tmp_path / "weights.bin"))


def test_a_folder_without_tokenizer_says_so(llama, tmp_path):
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(ConfregError, match=r"tokenizer of .* cannot be read"):
        models.describe(str(tmp_path))


def test_a_folder_without_weights_says_so(llama, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llama / name).read_bytes())
    with pytest.raises(ConfregError, match=r"holds no weights: neither model.safetensors"):
        models.load(str(tmp_path))


def test_missing_weights_are_not_made_up(llama, tmp_path):
    for file in llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ConfregError, match=r"lacks 9 of the weights .*model.layers.3"):
        models.load(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("jetmoe", {}, "mixture-of-experts model .* does not know. It knows: qwen3_moe"),
        ("dbrx", {}, "transformers cannot build one"),
        ("llava", {"text_config": {"model_type": "jetmoe"}}, "mixture-of-experts"),
        ("t5", {}, "encoder-decoder"),
        ("gemma4_text", {"enable_moe_block": True}, "a router chooses experts beside its MLP"),
        ("mamba", {}, r"'mamba', which is not in .* what holds backbone.* is no MLP"),
        ("opt", {"do_layer_norm_before": False}, "OPT cannot be measured: it has no final norm"),
        ("opt", {"word_embed_proj_dim": 512}, "from 768 to 512 dimensions"),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact"),
    ],
)
def test_architectures_that_are_refused(kind, changes, message):
    config = CONFIG_MAPPING[kind](**changes)
    with pytest.raises(ConfregError, match=message):
        lookup.find(config, "the model", lambda: classes.weightless(config))


def test_the_table_reads_for_people():
    rows = {row["architecture"]: row for row in models.table()}
    assert set(rows) == {*zoo.ARCHITECTURES, *zoo.EXPERTS, *zoo.AROUND_EXPERTS}
    assert rows["gemma2"]["built of"] == "RMSNorm, norm after the MLP, softcap, 1 + γ"
    assert rows["phi"]["built of"] == "LayerNorm, parallel blocks, unembedding bias"
