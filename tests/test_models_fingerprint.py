"""Weights are known by more than a name."""

from __future__ import annotations

import shutil

import pytest
import zoo

import confreg
from confreg.models import Model
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
