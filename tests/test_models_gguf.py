"""GGUF files: equal to the safetensors they were made from, or refused by name; parsed once."""

from __future__ import annotations

import gguf as library
import gguf_file
import numpy as np
import pytest
import torch
import zoo

from confreg import models
from confreg.errors import ConfregError
from confreg.models.placement import Placement


@pytest.fixture(scope="module")
def network():
    return zoo.tiny("llama")[0]


def logits(network, ids):
    return network(input_ids=ids, use_cache=False).logits


def test_a_file_computes_what_its_model_does(network, tmp_path):
    path = gguf_file.write(tmp_path / "tiny.gguf", network)
    for name in (tmp_path, path):
        model = models.load(str(name))
        assert model.dtype == "float32"
        ids = zoo.tokens()
        assert torch.equal(logits(model.nn._module, ids), logits(network, ids))
    with pytest.raises(ConfregError, match="is a GGUF file"):
        models.load(str(path), Placement(device_map={"": "cpu", "model.layers": "disk"}))


@pytest.mark.parametrize(
    "keys",
    [
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
        {"attention.sliding_window": 8},
        {"attention.key_length": 16},
        {"final_logit_softcapping": 3.0},
        {"residual_scale": 0.5},
        {"something.new": 1},
    ],
)
def test_what_transformers_does_not_read_is_refused_by_name(network, tmp_path, keys):
    path = gguf_file.write(tmp_path / "tiny.gguf", network, keys)
    with pytest.raises(ConfregError, match=rf"says llama.{next(iter(keys))} = .* not read"):
        models.describe(str(path))


def test_keys_that_say_what_holds_anyway_are_no_obstacle(network, tmp_path):
    keys = {
        "rope.scaling.type": "none", "attention.key_length": 8, "attention.value_length": 8,
        "rope.dimension_count": 8, "expert_count": 0, "rope.scaling.factor": 1.0,
    }  # fmt: skip
    model = models.load(str(gguf_file.write(tmp_path / "tiny.gguf", network, keys)))
    assert torch.equal(logits(model.nn._module, zoo.tokens()), logits(network, zoo.tokens()))


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_q.bias", "mystery"])
def test_tensors_that_the_model_does_not_take_are_refused_by_name(network, tmp_path, name):
    more = {name: np.full(32, 2.0, np.float32)}
    path = gguf_file.write(tmp_path / "tiny.gguf", network, tensors=more)
    with pytest.raises(ConfregError, match=rf"holds 1 tensors .*\({name}\)"):
        models.load(str(path))


def test_no_bar_is_drawn_unasked(network, tmp_path, capfd):
    models.load(str(gguf_file.write(tmp_path / "tiny.gguf", network)))
    assert capfd.readouterr().err == ""


def test_a_file_is_parsed_once(network, tmp_path, monkeypatch):
    """For the configuration, the tokenizer and the weights; anew once it has changed."""
    from gguf.gguf_reader import GGUFReader

    parsed = []
    usual = GGUFReader.__init__
    monkeypatch.setattr(
        GGUFReader,
        "__init__",
        lambda self, path, *a: (parsed.append(path), usual(self, path, *a))[0],
    )
    path = gguf_file.write(tmp_path / "tiny.gguf", network)
    models.load(str(path), described=models.describe(str(path)))
    assert len(parsed) == 1
    assert library.GGUFReader is GGUFReader
    other, _ = zoo.tiny("llama", seed=1)
    path.unlink()
    gguf_file.write(path, other)
    model = models.load(str(path))
    assert len(parsed) == 2
    assert torch.equal(logits(model.nn._module, zoo.tokens()), logits(other, zoo.tokens()))


def test_a_file_that_is_cut_off_says_so(network, tmp_path):
    path = gguf_file.write(tmp_path / "tiny.gguf", network)
    whole = path.read_bytes()
    for left in (0, 100, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:left])
        with pytest.raises(ConfregError, match=r"tiny.gguf"):
            models.load(str(path))
