"""Checkpoints that are quantized already, against weights that plain numpy makes of their files."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import confreg
from confreg import ConfregError, models
from confreg.models import Model
from confreg.models.placement import Placement


def saved(folder, kind="llama", **sizes):
    network, words = zoo.tiny(kind, **sizes)
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()  # as its configuration says


def rewrite(folder, quantization, change):
    """Change the weights of a folder one by one, and say so in its configuration."""
    weights = {}
    for name, value in load_file(folder / "model.safetensors").items():
        weights |= change(name, value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    content = json.loads(file.read_text()) | {"quantization_config": quantization}
    file.write_text(json.dumps(content))


def with_weights(network, weights):
    """A copy of a network with other weights, by name."""
    changed = copy.deepcopy(network)
    for name, value in weights.items():
        changed.get_parameter(name).data.copy_(torch.as_tensor(value))
    return changed


def same(folder, expected, network):
    """What is loaded computes what is expected, which is not what was before."""
    model = models.load(str(folder), dtype="float32")
    ids = zoo.tokens()
    found = model.nn._module(input_ids=ids, use_cache=False).logits
    wanted = expected(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
    assert (wanted - network(input_ids=ids, use_cache=False).logits).abs().max() > 0.02
    return model


def test_fp8_by_blocks(words, tmp_path):
    network = saved(tmp_path / "model")
    plain = {}

    def to_fp8(name, value):
        if not name.endswith("proj.weight"):
            return {name: value}
        blocks = value.reshape(value.shape[0] // 16, 16, value.shape[1] // 16, 16)
        scale = blocks.abs().amax((1, 3)) / 448
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        plain[name] = (packed.float() * scale[:, None, :, None]).reshape(value.shape)
        return {name: packed.reshape(value.shape), f"{name}_scale_inv": scale}

    said = {
        "quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    rewrite(tmp_path / "model", said, to_fp8)
    expected = with_weights(network, plain)
    same(tmp_path / "model", expected, network)
    options = {
        "text": words, "sequence_length": 16, "max_tokens": 48, "neurons": "2:0-7",
        "progress": False,
    }  # fmt: skip
    found = confreg.run(
        "entropy_neurons", model=str(tmp_path / "model"), out=tmp_path / "a.zarr", **options
    )
    wrapped = Model.wrap(expected, zoo.tokenizer(), name="plain")
    wanted = confreg.run("entropy_neurons", model=wrapped, out=tmp_path / "b.zarr", **options)
    np.testing.assert_allclose(found["effects"].values, wanted["effects"].values, atol=5e-5)
    np.testing.assert_allclose(found["w_out_norm"].values, wanted["w_out_norm"].values, rtol=1e-5)


def test_mxfp4_experts(tmp_path):
    """Two four-bit floats a byte, the lower first, 32 of a scale that is a power of two."""
    network = saved(tmp_path / "model", "gpt_oss", intermediate_size=32)
    draw = np.random.default_rng(0)
    halves = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = np.concatenate([halves, -halves])
    plain = {}

    def to_mxfp4(name, value):
        if not name.endswith(("gate_up_proj", "down_proj")):
            return {name: value}
        experts, inputs, outputs = value.shape
        assert inputs % 32 == 0
        shape = (experts, outputs, inputs // 32, 16)
        blocks = draw.integers(0, 256, shape).astype(np.uint8)
        scales = draw.integers(122, 126, shape[:-1]).astype(np.uint8)
        pairs = np.stack([table[blocks & 15], table[blocks >> 4]], -1)
        values = pairs.reshape(*shape[:-1], 32) * 2.0 ** (scales[..., None].astype(float) - 127)
        plain[name] = values.reshape(experts, outputs, inputs).swapaxes(1, 2).copy()
        return {
            f"{name}_blocks": torch.from_numpy(blocks), f"{name}_scales": torch.from_numpy(scales)
        }  # fmt: skip

    rewrite(tmp_path / "model", {"quant_method": "mxfp4"}, to_mxfp4)
    same(tmp_path / "model", with_weights(network, plain), network)


def test_bitsandbytes_in_eight_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    network = saved(tmp_path / "model", hidden_size=64, intermediate_size=128)
    plain = {}

    def to_int8(name, value):
        if not name.endswith("proj.weight"):
            return {name: value}
        scale = value.abs().amax(1)
        packed = (value * 127 / scale[:, None]).round().to(torch.int8)
        plain[name] = packed.float() * scale[:, None] / 127
        stem = name.removesuffix("weight")
        return {name: packed, f"{stem}SCB": scale, f"{stem}weight_format": torch.tensor(0).byte()}

    rewrite(tmp_path / "model", {"quant_method": "bitsandbytes", "load_in_8bit": True}, to_int8)
    same(tmp_path / "model", with_weights(network, plain), network)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_in_four_bits(tmp_path, kind):
    """Saved by transformers; undone here from the file: a table, and a scale for 64 values."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    network = saved(tmp_path / "base", hidden_size=64, intermediate_size=128)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind)
    packed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=settings, device_map="cpu", dtype=torch.float32
    )
    packed.save_pretrained(tmp_path / "model")
    zoo.tokenizer().save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    plain = {}
    for name in stored:
        if name.endswith(".absmax"):
            weight = name.removesuffix(".absmax")
            both = stored[weight].numpy().reshape(-1)
            table = stored[f"{weight}.quant_map"].numpy()
            values = table[np.stack([both >> 4, both & 15], -1).reshape(-1)]
            scaled = values.reshape(-1, 64) * stored[name].numpy()[:, None]
            plain[weight] = scaled.reshape(network.get_parameter(weight).shape)
    assert len(plain) == 21
    same(tmp_path / "model", with_weights(network, plain), network)


def test_compressed_tensors_in_eight_bits(tmp_path):
    pytest.importorskip("compressed_tensors")
    network = saved(tmp_path / "model")
    plain = {}

    def to_int8(name, value):
        if not name.endswith("proj.weight"):
            return {name: value}
        scale = value.abs().amax(1, keepdim=True) / 127
        packed = (value / scale).round().to(torch.int8)
        plain[name] = packed.float() * scale
        return {name: packed, f"{name}_scale": scale}

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights, "format": "int-quantized"}
    said = {
        "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        "quantization_status": "compressed",
    }  # fmt: skip
    rewrite(tmp_path / "model", said, to_int8)
    same(tmp_path / "model", with_weights(network, plain), network)


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm", "hqq"])
def test_what_cannot_be_undone_is_refused_before_weights_are_read(tmp_path, method):
    saved(tmp_path)
    rewrite(tmp_path, {"quant_method": method, "bits": 4}, lambda name, value: {name: value})
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfregError, match=rf"by '{method}', which transformers cannot turn back"):
        models.describe(str(tmp_path))


def test_a_format_that_nobody_knows_is_refused(tmp_path):
    saved(tmp_path)
    rewrite(tmp_path, {"quant_method": "mine"}, lambda name, value: {name: value})
    with pytest.raises(ConfregError, match="'mine', which transformers does not know"):
        models.describe(str(tmp_path))


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    saved(tmp_path)
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    rewrite(tmp_path, said, lambda name, value: {name: value})
    from transformers.quantizers import quantizer_bnb_4bit as theirs

    monkeypatch.setattr(theirs, "is_bitsandbytes_available", lambda *a, **k: False)
    with pytest.raises(ConfregError, match=r"bitsandbytes_4bit.*bitsandbytes"):
        models.describe(str(tmp_path))


def test_packing_it_again_is_refused(tmp_path):
    saved(tmp_path)
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    rewrite(tmp_path, said, lambda name, value: {name: value})
    with pytest.raises(ConfregError, match="quantized already"):
        models.describe(str(tmp_path), dtype="nf4")
    with pytest.raises(ConfregError, match="cannot stay on disk"):
        models.load(str(tmp_path), Placement(device_map={"": "cpu", "model.layers": "disk"}))
