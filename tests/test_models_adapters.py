"""Adapters: every engine measures the model they are merged into; those of others are refused."""

from __future__ import annotations

import copy
import json
import shutil
import sys

import numpy as np
import peft
import pytest
import torch
import zoo
from hub import Hub

import confreg
from confreg import ConfregError, models
from confreg.cli.main import main
from confreg.models import Model, adapters
from confreg.models import verified as cache
from confreg.models.agreement import tokens_for
from confreg.models.placement import Placement

TARGETS = {
    "llama": ["q_proj", "v_proj", "gate_proj", "down_proj", "lm_head"],
    "gpt2": ["c_attn", "c_proj"],
    "gemma2": ["o_proj", "down_proj"],
}
EFFECTS = ["loss_total", "loss_direct", "entropy_total", "entropy_direct"]


def adapter(network, folder, seed=0, **settings):
    """Save a random adapter of a network, and return the network that it is merged into."""
    kind = network.config.model_type
    given = {"target_modules": TARGETS[kind], "r": 4, "lora_alpha": 8} | settings
    if kind == "gpt2":
        given["fan_in_fan_out"] = True
    wrapped = peft.get_peft_model(copy.deepcopy(network), peft.LoraConfig(**given))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            noise = torch.randn(parameter.shape, generator=draw) * 0.2
            parameter.data.copy_(noise if "lora_" in name else 1 + noise)
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``made("llama")``: folders of model and adapter, and the merged network."""
    kept = {}

    def get(kind):
        if kind not in kept:
            folder = tmp_path_factory.mktemp(kind)
            network, _ = zoo.tiny(kind)
            zoo.save(kind, folder / "model")
            more = {"modules_to_save": ["norm"]} if kind == "llama" else {}
            kept[kind] = folder, adapter(network, folder / "adapter", **more)
        return kept[kind]

    return get


def run(model, words, out, recipe="entropy_neurons", **options):
    given = {"sequence_length": 16, "max_tokens": 48, "neurons": "2:0-11", "progress": False}
    return confreg.run(recipe, model=model, text=words, out=out, **(given | options))


@pytest.mark.parametrize("engine", ["forward", "exact", "series"])
@pytest.mark.parametrize(
    "kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow),
             pytest.param("gemma2", marks=pytest.mark.slow)],
)  # fmt: skip
def test_every_engine_measures_the_merged_model(made, words, tmp_path, kind, engine):
    folder, merged = made(kind)
    found = run(
        str(folder / "model"), words, tmp_path / "a.zarr", engine=engine,
        adapter=folder / "adapter", effects=EFFECTS,
    )  # fmt: skip
    wrapped = Model.wrap(merged, zoo.tokenizer(), name="merged")
    wanted = run(wrapped, words, tmp_path / "b.zarr", engine=engine, effects=EFFECTS)
    bare = run(str(folder / "model"), words, tmp_path / "c.zarr", engine=engine)
    np.testing.assert_allclose(found["effects"].values, wanted["effects"].values, atol=5e-5)
    for name in ("w_out_norm", "logit_var", "null_fraction"):
        np.testing.assert_allclose(found[name].values, wanted[name].values, rtol=1e-4, atol=1e-6)
        assert np.abs(found[name].values - bare[name].values).max() > 1e-3, "it changes nothing"
    assert found.attrs["model_adapter"] == str(folder / "adapter")


def test_the_output_weight_includes_the_update(made, words, tmp_path):
    """In plain numpy, from the files: W + (alpha / r) B A."""
    from safetensors.torch import load_file

    folder, _ = made("llama")
    ds = run(str(folder / "model"), words, tmp_path / "o.zarr", adapter=str(folder / "adapter"))
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.2.mlp.down_proj.lora_"
    a, b = (weights[f"{stem}{part}.weight"].double().numpy() for part in "AB")
    base = zoo.tiny("llama")[0].model.layers[2].mlp.down_proj.weight.double().numpy()
    wanted = np.linalg.norm(base + 2 * b @ a, axis=0)[:12]
    np.testing.assert_allclose(ds["w_out_norm"].values, wanted, rtol=1e-5)


def test_another_adapter_is_another_configuration(made, words, tmp_path):
    folder, _ = made("llama")
    mine = tmp_path / "adapter"
    adapter(zoo.tiny("llama")[0], mine)
    run(str(folder / "model"), words, tmp_path / "o.zarr", adapter=str(mine))
    run(str(folder / "model"), words, tmp_path / "o.zarr", adapter=str(mine))
    adapter(zoo.tiny("llama")[0], mine, seed=1)
    with pytest.raises(ConfregError, match="weights_sha256"):
        run(str(folder / "model"), words, tmp_path / "o.zarr", adapter=str(mine))
    with pytest.raises(ConfregError, match="model_adapter"):
        run(str(folder / "model"), words, tmp_path / "o.zarr")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("gpt2", {}), ("llama", {"intermediate_size": 40}), ("llama", {"num_hidden_layers": 4})],
)
def test_an_adapter_of_another_model_is_refused(made, tmp_path, kind, changes):
    """By other names, other shapes, or layers that the model does not have."""
    folder, _ = made("llama")
    adapter(zoo.tiny(kind, **changes)[0], tmp_path / "other")
    with pytest.raises(ConfregError, match=r"adapter .*other is not one of .*model: ") as error:
        models.load(str(folder / "model"), adapter=str(tmp_path / "other"))
    assert "\n" not in str(error.value)


def test_what_is_no_adapter_says_so(made, tmp_path, monkeypatch):
    folder, _ = made("llama")
    with pytest.raises(ConfregError, match="is no adapter"):
        adapters.locate(folder / "model")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ConfregError, match="has no weights"):
        adapters.locate(tmp_path)
    with pytest.raises(ConfregError, match=r"There is no adapter '\./nowhere'"):
        adapters.locate("./nowhere")
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfregError, match="needs peft"):
        adapters.attach(zoo.tiny("llama")[0], folder / "adapter", "m")


@pytest.mark.slow
def test_adapters_come_from_the_hub(made, tmp_path):
    """By an id, with a revision or without; what the Hub does not have is a sentence."""
    folder, _ = made("llama")
    shutil.copytree(folder / "adapter", tmp_path / "hub" / "owner" / "adapter")
    with Hub(tmp_path / "hub") as hub, hub.adopted(tmp_path / "cache"):
        for name in ("owner/adapter", "owner/adapter@main"):
            found = adapters.locate(name)
            stored = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
            assert (found / "adapter_model.safetensors").read_bytes() == stored
        with pytest.raises(ConfregError, match="There is no adapter 'owner/absent'"):
            adapters.locate("owner/absent")


def test_layers_on_disk_and_prompts_are_refused(made, tmp_path):
    folder, _ = made("llama")
    placed = Placement(device_map={"": "cpu", "model.layers": "disk"})
    with pytest.raises(ConfregError, match="weights that are in memory"):
        models.load(str(folder / "model"), placed, adapter=str(folder / "adapter"))
    settings = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    peft.get_peft_model(zoo.tiny("llama")[0], settings).save_pretrained(tmp_path / "prompts")
    with pytest.raises(ConfregError, match="cannot be attached"):
        models.load(str(folder / "model"), adapter=str(tmp_path / "prompts"))


def test_a_model_that_is_loaded_brings_its_own(made, words, tmp_path):
    """A network that has an adapter already is measured with it; --adapter is refused beside it."""
    folder, merged = made("llama")
    model = models.load(str(folder / "model"), adapter=str(folder / "adapter"))
    found = run(model, words, tmp_path / "a.zarr")
    wanted = run(Model.wrap(merged, zoo.tokenizer(), name="x"), words, tmp_path / "b.zarr")
    np.testing.assert_allclose(found["te"].values, wanted["te"].values, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfregError, match="loaded by name"):
        run(model, words, tmp_path / "c.zarr", adapter=str(folder / "adapter"))


def test_the_command_line_takes_it(made, tmp_path, capsys):
    folder, _ = made("llama")
    text = tmp_path / "t.txt"
    text.write_text("w3 w4 w5 w6 w7 w8 w9 w10 w11")
    words = ["run", "entropy_neurons", "--model", str(folder / "model"), "--text", str(text)]
    words += ["--sequence-length", "16", "--neurons", "2:0-3", "--out", str(tmp_path / "o.zarr")]
    main([*words, "--quiet", "--adapter", str(folder / "adapter")])
    assert confreg.open(tmp_path / "o.zarr").attrs["model_adapter"] == str(folder / "adapter")


def verified(words, capsys):
    """What the command says and keeps, by what the record is of."""
    main(["verify", *words])
    return capsys.readouterr().out, {cache.title(each): each for each in cache.every()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_check_is_of_the_model_with_its_adapter(made, tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    folder, merged = made(kind)
    monkeypatch.chdir(folder)
    model, its_adapter = "./model", "./adapter"
    said, kept = verified([model, "--adapter", its_adapter], capsys)
    assert f"{model} + {its_adapter}: {kind}, row tested, float32" in said
    assert "differs" not in said
    (record,) = kept.values()
    compared = {part["part"]: part for part in record["compared"]}
    assert compared.keys() == {
        "logits", "neurons", "scale", "causal", "exact", "series", "heads"
    }  # fmt: skip
    assert max(part["difference"] for part in compared.values()) < 2e-5
    ids = tokens_for(models.describe(model))
    logits = float(merged(ids).logits.detach().abs().max())
    assert compared["logits"]["largest"] == pytest.approx(logits, rel=1e-5)
    # Without it the model is another, and so is the record.
    _, both = verified([model], capsys)
    assert both.keys() == {model, f"{model} + {its_adapter}"}
    bare = both[model]["compared"][0]
    assert bare["largest"] != pytest.approx(logits, rel=1e-3)
    assert both[f"{model} + {its_adapter}"]["compared"] == record["compared"]
    main(["models"])
    listed = capsys.readouterr().out
    assert f"{model} + {its_adapter}" in listed
    assert all(len(line.rstrip()) <= 80 for line in listed.splitlines())


def test_an_adapter_that_does_not_fit_is_not_verified(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    folder, _ = made("llama")
    adapter(zoo.tiny("llama", intermediate_size=40)[0], tmp_path / "other")
    for given, sentence in (
        (["--adapter", str(tmp_path / "other")], "other is not one of"),
        (["--adapter", str(tmp_path / "none")], "There is no adapter"),
        (["--adapter", str(folder / "adapter"), "--profile", "ndif"], "for this machine: a server"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(folder / "model"), *given])
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert sentence in said.err
        assert not said.out
    assert not cache.every()
