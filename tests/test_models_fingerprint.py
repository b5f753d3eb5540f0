"""Weights are known by more than a name."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
import zoo

import confreg
from confreg.models import Model, fingerprint
from confreg.models.fingerprint import of_files, of_network


def small(model, words, out, **options):
    return confreg.run(
        "entropy_neurons", model=model, text=words, out=out, neurons="2:0-3",
        sequence_length=16, max_tokens=48, progress=False, **options,
    )  # fmt: skip


def test_other_weights_in_the_same_folder_are_another_configuration(words, tmp_path):
    folder = zoo.save("llama", tmp_path / "model")
    before = float(small(str(folder), words, tmp_path / "o.zarr")["te"].sum())
    assert float(small(str(folder), words, tmp_path / "o.zarr")["te"].sum()) == before
    shutil.rmtree(folder)
    zoo.save("llama", folder, seed=1)
    with pytest.raises(confreg.ConfregError, match="weights_sha256"):
        small(str(folder), words, tmp_path / "o.zarr")
    after = float(small(str(folder), words, tmp_path / "o.zarr", overwrite=True)["te"].sum())
    assert after != before


def test_a_copy_has_the_same_fingerprint(checkpoint, tmp_path):
    folder = checkpoint("llama")
    shutil.copytree(folder, tmp_path / "copy")
    assert of_files(tmp_path / "copy") == of_files(folder)
    weights = next((tmp_path / "copy").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert of_files(tmp_path / "copy") != of_files(folder)


def test_a_wrapped_network_that_was_changed_is_another(words, tmp_path):
    network, tokenizer = zoo.tiny("llama")
    first = of_network(network)
    small(Model.wrap(network, tokenizer, name="mine"), words, tmp_path / "o.zarr")
    assert of_network(network) == first
    network.lm_head.weight.data[0, 0] += 1
    assert of_network(network) != first
    with pytest.raises(confreg.ConfregError, match="weights_sha256"):
        small(Model.wrap(network, tokenizer, name="mine"), words, tmp_path / "o.zarr")


def test_one_neuron_more_or_less_is_another_network():
    """Every byte is read: no grid of samples passes over a column."""
    network, _ = zoo.tiny("llama", hidden_size=64, intermediate_size=1000)
    first = of_network(network)
    for layer, column in ((0, 5), (1, 501), (2, 999)):
        weight = network.model.layers[layer].mlp.down_proj.weight
        kept = weight[:, column].clone()
        weight.data[:, column] = 0
        assert of_network(network) != first
        weight.data[:, column] = kept
        assert of_network(network) == first


def test_what_a_configuration_says_is_part_of_it(checkpoint, tmp_path):
    shutil.copytree(checkpoint("llama"), tmp_path / "copy")
    before = of_files(tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    assert of_files(tmp_path / "copy") != before
    network, _ = zoo.tiny("granite")
    first = of_network(network)
    network.config.logits_scaling = 3.0
    assert of_network(network) != first


def test_frequencies_that_a_forward_replaces_are_no_other_weights():
    longrope = {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 8,
    }  # fmt: skip
    network, _ = zoo.tiny(
        "phi3", original_max_position_embeddings=8, rope_parameters=longrope,
        partial_rotary_factor=1.0,
    )  # fmt: skip
    first = of_network(network)
    network(zoo.tokens(length=12))
    assert of_network(network) == first


def test_a_large_file_is_read_once_while_it_is_unchanged(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprint, "KEPT", 1)
    monkeypatch.setattr(fingerprint, "PART", 1000)
    folder = zoo.save("llama", tmp_path / "model")
    read = []
    usual = fingerprint._of_content
    monkeypatch.setattr(
        fingerprint, "_of_content", lambda file, size: read.append(file.name) or usual(file, size)
    )
    first = of_files(folder)
    assert len(read) == len(list(folder.glob("*.safetensors"))) + 1
    read.clear()
    assert of_files(folder) == first
    assert read == []
    weights = sorted(folder.glob("*.safetensors"))[-1]
    state = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))  # as if it were unchanged
    assert of_files(folder) != first
    assert read == [weights.name]
    broken = next((tmp_path / "cache" / "fingerprints").glob("*.json"))
    broken.write_text("{")
    assert of_files(folder) != first


def test_weights_that_change_while_they_are_read_are_refused(words, tmp_path, monkeypatch):
    from confreg import models

    folder = zoo.save("llama", tmp_path / "model")
    usual = models.load

    def slow(*args, **options):
        model = usual(*args, **options)
        shutil.rmtree(folder)
        zoo.save("llama", folder, seed=1)
        return model

    monkeypatch.setattr(models, "load", slow)
    with pytest.raises(confreg.ConfregError, match="changed while they were read"):
        small(str(folder), words, tmp_path / "o.zarr")


def test_a_model_that_stays_on_the_disk_is_known_by_its_files(tmp_path):
    from confreg import models
    from confreg.models.network import Network
    from confreg.models.placement import Placement

    folder = zoo.save("llama", tmp_path / "model")
    placed = {"": "cpu", "model.layers.1": "disk"}
    found = set()
    for seed in (0, 1):
        if seed:
            shutil.rmtree(folder)
            zoo.save("llama", folder)
            weights = next(f for f in folder.glob("*.safetensors") if holds_layer_1(f))
            content = bytearray(weights.read_bytes())
            content[-2] ^= 1
            weights.write_bytes(content)
        model = models.load(str(folder), Placement(device_map=placed))
        assert any(p.device.type == "meta" for p in model.nn._module.parameters())
        found.add(fingerprint.fingerprint(Network(str(folder), model.description, loaded=model)))
    assert len(found) == 2


def holds_layer_1(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as weights:
        return sorted(weights.keys(), key=str)[-1].startswith("model.layers.1.")


def test_bfloat16_and_empty_tensors_are_read():
    network = torch.nn.Module()
    network.register_buffer("a", torch.ones(3, dtype=torch.bfloat16))
    network.register_buffer("b", torch.zeros(0))
    network.register_buffer("c", torch.tensor(True))
    first = of_network(network)
    network.a[1] = 2
    assert of_network(network) != first
