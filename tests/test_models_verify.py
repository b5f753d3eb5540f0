"""Rows that no test covers: derived ones, and whether a wrong one is found out on the weights."""

from __future__ import annotations

import dataclasses
import functools
import json
import re

import nnsight
import numpy as np
import oracle
import pytest
import torch
import zoo
from nnsight.intervention.interleaver import OutOfOrderError
from tracing import model_of
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import confreg
from confreg import effects as fx
from confreg import models
from confreg.cli import main
from confreg.errors import ConfregError
from confreg.models import (
    Model,
    agreement,
    classes,
    derived,
    families,
    lookup,
    verified,
    verify,
)

# What has a table's row and another derived one: it is refused, or found to be wrong.
DERIVED_WRONG = {
    "hyperclovax": "scale",  # it multiplies by what others divide by
    "cohere2_vision": "scale",  # the wrapper leaves its text model's out
    "gemma3": "softcap",
}
NOT_DERIVED = {"falcon_h1"}  # two matrices could end its MLP
SCALED = {"gemma4_text", "gemma4", "gemma4_unified"}  # by a number of the layer's own
# An architecture that is in no table, built like Llama but for its attention and residuals.
UNKNOWN = "doge"


def with_row(model: Model, **changes) -> Model:
    row = dataclasses.replace(model.description.row, **changes)
    return Model(model.nn, dataclasses.replace(model.description, row=row))


def found_wrong(model: Model) -> list[str]:
    return [c.name for c in verify.verify(model) if not c.ok]


@pytest.mark.parametrize("architecture", zoo.EVERY + zoo.EVERY_OF_EXPERTS)
def test_every_tested_row_verifies(architecture):
    found = {c.name: c for c in verify.verify(model_of(architecture))}
    assert all(c.ok for c in found.values())
    for name in ("logits", "causal", "exact", "series"):
        assert found[name].is_compared
        assert found[name].largest > 0.3
    assert found["exact"].difference < 2e-5
    assert ("experts" in found) == (architecture in zoo.EXPERTS)
    if architecture in zoo.EXPERTS:
        assert found["experts"].largest > 0.3
    else:
        assert found["neurons"].is_compared == (architecture != "olmo_hybrid")
    assert found["heads"].is_compared == any(model_of(architecture).attends)


def mutations(row, config):
    """Rows that are wrong in one part, where that changes a number."""
    yield "centred", {"centred": not row.centred}
    yield "eps", {"eps": row.norm_eps(config) + 1.0}
    yield "final norm", {"final_norm": f"{row.layers}.0.{FIRST_NORM.get(row.model_type, '')}"}
    if row.post_norm is not None:
        yield "post-norm", {"post_norm": None}
    if row.mlp_factor(config) != 1:
        yield "multiplier", {"multiplier": 1.0}
    if row.readout(config)["scale"] != 1:
        yield "scale", {"scale": 1.0}
    if row.readout(config)["softcap"] is not None:
        yield "softcap", {"softcap": None}
    if row.scaled_sum is not None:
        yield "layer's scale", {"scaled_sum": None}
    if row.shared_gate:
        yield "shared gate", {"shared_gate": ""}
    yield from read_otherwise(row, config)


def read_otherwise(row, config):
    """Rows that are wrong in what neurons read."""
    before = row.before_mlp(config)
    if not row.up:
        return
    if row.gate not in ("", row.up):
        yield "gate and up swapped", {"up": row.gate, "gate": row.up}
        yield "no gate", {"gate": ""}
    if row.up == row.gate:
        yield "not fused", {"gate": ""}
    if not row.parallel:
        first = OTHER_NORM.get(row.wraps or row.model_type, "input_layernorm")
        yield "norm before", {"norm_before": None if before else "post_attention_layernorm"}
        if before and row.layers.partition(".")[0] == "model":
            yield "another norm before", {"norm_before": first}
    if row.input_factor(config) != 1:
        yield "gate factor", {"gate_factor": 1.0}


READ = {"gate and up swapped", "no gate", "not fused", "norm before", "another norm before"}
READ |= {"gate factor"}
OTHER_NORM = {
    "apertus": "attention_layernorm",
    "lfm2": "operator_norm",
    "opt": "self_attn_layer_norm",
}
FIRST_NORM = {"gpt2": "ln_2", "llama": "post_attention_layernorm", "bloom": "input_layernorm"}


@pytest.mark.parametrize("architecture", zoo.EVERY + zoo.EVERY_OF_EXPERTS)
def test_wrong_rows_are_found_out(architecture):
    model = model_of(architecture)
    row, config = model.description.row, model.description.config
    for part, changes in mutations(row, config):
        if part == "final norm" and row.model_type not in FIRST_NORM:
            continue
        mutant = with_row(model, **changes)
        if part == "final norm":  # it is called before the neurons are
            with pytest.raises(
                ConfregError, match="order in which its row names its parts"
            ) as found:
                verify.verify(mutant)
            assert isinstance(found.value.__cause__, OutOfOrderError)
        elif part in READ:
            found = agreement.made(mutant, zoo.tokens(1))
            assert found["made"] > 0.01 * found["neuron"], part
        else:
            assert {"exact", "scale", "experts"} & set(found_wrong(mutant)), part


class SwappedGate:
    """Takes up for gate."""

    def parameters(self):
        found, module = dict(super().parameters()), self.experts._module
        halves = (-1, 2) if type(module).__name__ == "GptOssExperts" else (2, -1)  # it interleaves
        for name in {"gate_up_proj", "gate_up_proj_bias"} & found.keys():
            at = found[name].dim() - 1 if self.transposed() else 1
            split = found[name].unflatten(at, halves).flip(at + halves.index(2))
            found[name] = split.flatten(at, at + 1)
        return found


class OthersDown:
    """Takes the down-projection of the expert before."""

    def parameters(self):
        own = dict(super().parameters())
        return own | {"down_proj": own["down_proj"].roll(1, 0)}


class OthersBias:
    """Takes a bias of the expert before."""

    def parameters(self):
        own = dict(super().parameters())
        return own | {"down_proj_bias": own["down_proj_bias"].roll(1, 0)}


class Unweighted:
    """Forgets the routing weights."""

    def read(self):
        if isinstance(self, fx.Weighed):
            self.unweighted = self.whole.input.flatten(0, -2)
        return super().read()

    def activations(self, hidden, *routing):
        if routing:
            return super().activations(hidden, routing[0], torch.ones_like(routing[1]))
        there = (hidden != 0).any(-1, keepdim=True)
        return super().activations(there * self.unweighted.repeat(self.count, 1))

    input = property(read, fx.Routed.write)


class NothingShared:
    """Forgets what the shared expert's neurons add."""

    def adds(self, neurons):
        neurons = neurons.clone()
        neurons[:, self.count * self.width :] = 0
        return super().adds(neurons)


def read_wrong():
    """Families of experts and what changes a number there."""
    for param in zoo.EVERY_OF_EXPERTS:
        (name,) = param.values
        wrong = [SwappedGate, OthersDown, Unweighted]
        wrong += [OthersBias] * (name == "gpt_oss") + [NothingShared] * (name in zoo.SHARED)
        yield from (pytest.param(name, each, marks=param.marks) for each in wrong)


@pytest.mark.parametrize(("architecture", "wrong"), read_wrong())
def test_experts_that_are_read_wrong_are_found_out(architecture, wrong, monkeypatch):
    """By what their module returns: engines read activations and output weights alike."""
    for name in ("Routed", "Weighed"):
        monkeypatch.setattr(fx, name, type(name, (wrong, getattr(fx, name)), {}))
    assert found_wrong(model_of(architecture))[0] == "experts"


@pytest.mark.parametrize("architecture", ["granite_swa", "diffllama", "qwen3_5_text"])
def test_heads_that_cannot_be_told_apart_are_found_out(architecture):
    model = model_of(architecture)
    row = dataclasses.replace(model.description.row, attention_out="self_attn.o_proj")
    if architecture == "qwen3_5_text":
        row = dataclasses.replace(row, attends=families._attention_layers)
    attends = tuple(row.has_heads(model.config))
    described = dataclasses.replace(model.description, row=row, attends=attends)
    assert found_wrong(Model(model.nn, described)) == ["heads"]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "granite", "cohere"])
def test_rounded_weights_hide_no_wrong_row(architecture):
    network, words = zoo.tiny(architecture)
    model = Model.wrap(network.to(torch.bfloat16), words)
    assert found_wrong(model) == []
    for part, changes in mutations(model.description.row, model.config):
        if part not in ("final norm", "eps"):
            assert found_wrong(with_row(model, **changes)), part


def test_small_numbers_are_held_to_their_own_size():
    def compared(difference, largest, least=0.0):
        return agreement.Compared("heads", "", difference, largest, 1e-4, least).ok

    assert compared(9e-9, 1e-4)
    assert not compared(9e-5, 1e-4)
    assert not compared(0.0, 0.0)
    assert not compared(float("nan"), float("nan"))
    assert not compared(float("nan"), 1.0)
    assert not compared(float("inf"), float("inf"))
    assert compared(9e-5, 1e-3, least=1.0)  # as 1 is rounded
    assert not compared(9e-5, 1e-5, least=1.0)


def broken(how):
    """A model whose numbers are not finite, and the dtype in which they are not."""
    network, words = unknown()
    if how == "NaN":
        network.model.norm.weight.data[3] = float("nan")
        return network, words, "float32"
    network.model.layers[0].mlp.down_proj.weight.data *= 1e6
    return network, words, "float16"


@pytest.mark.parametrize("how", ["NaN", "overflow"])
def test_numbers_that_are_not_finite_are_no_agreement(how, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    network, tokenizer, dtype = broken(how)
    network.save_pretrained(tmp_path / UNKNOWN)
    tokenizer.save_pretrained(tmp_path / UNKNOWN)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tmp_path / UNKNOWN), "--dtype", dtype])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "not finite" in said.out
    assert "are not finite. Its weights hold" in said.err
    assert (f"overflow in {dtype}" in said.err) == (how == "overflow")
    assert [record["ok"] for record in verified.every()] == [False]
    choice = {"text": words, "dtype": dtype, **CHOICE}
    with pytest.raises(ConfregError, match="are not finite"):
        confreg.run(
            "entropy_neurons", model=str(tmp_path / UNKNOWN), out=tmp_path / "o.zarr", **choice
        )


def test_a_model_that_sees_ahead_is_found_out():
    network, words = zoo.tiny("llama")
    for layer in network.model.layers:
        layer.self_attn.is_causal = False
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"attention_mask": None}),
            with_kwargs=True,
        )
    assert "causal" in found_wrong(Model.wrap(network, words))


def parts(row, config):
    text = lookup.text_of(config)
    return {
        "layers": row.layers,
        "down_projection": row.down_projection,
        "final_norm": row.final_norm,
        "unembedding": row.unembedding,
        "post_norm": row.post_norm,
        "width": row.n_neurons(text),
        "multiplier": row.mlp_factor(text),
        **row.readout(text),
    }


@pytest.mark.parametrize("architecture", zoo.EVERY)
def test_what_is_derived_is_what_the_table_says(architecture):
    config = zoo.config(architecture)
    network, text = classes.weightless(config), lookup.text_of(config)
    if architecture in NOT_DERIVED:
        with pytest.raises(ConfregError, match="it has 2 matrices"):
            derived.derive(config, text, "tiny", network)
        return
    mine = parts(derived.derive(config, text, "tiny", network), config)
    table = parts(lookup.find(config, "tiny"), config)
    wrong = DERIVED_WRONG.get(architecture)
    assert mine.pop("eps") == pytest.approx(table.pop("eps"), rel=0.02)
    assert {name for name in mine if mine[name] != table[name]} == ({wrong} if wrong else set())


def unknown(**changes):
    """A model of an architecture that is in no table, and its tokenizer."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[UNKNOWN](**zoo.CONFIGS["llama"] | changes)
    network = classes.auto_class(UNKNOWN).from_config(config).eval().requires_grad_(False)
    zoo.randomise(network, torch.Generator().manual_seed(0))
    return network, zoo.tokenizer()


@pytest.fixture
def saved(tmp_path):
    network, words = unknown()
    folder = tmp_path / UNKNOWN
    network.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


CHOICE = {"sequence_length": 12, "max_tokens": 24, "neurons": "2:0-5", "progress": False}


def test_an_unknown_architecture_is_measured_once_it_is_verified(saved, words, tmp_path):
    assert UNKNOWN not in families.ARCHITECTURES
    choice = {"model": saved, "text": words, **CHOICE}
    ds = confreg.run("entropy_neurons", out=tmp_path / "o.zarr", **choice)
    assert ds.attrs["verified_row"].startswith("derived, verified to ")
    said = re.search(r"verified to (\S+) nats in effects of (\S+)$", ds.attrs["verified_row"])
    assert float(said[1]) < 1e-4
    assert float(said[2]) > 0.3
    judge = oracle.Oracle(unknown()[0].float(), kind="llama")
    ids = torch.from_numpy(ds["token_id"].values).view(2, 12)
    values = torch.from_numpy(ds["ablation_value"].values)
    truth = judge.ablate(ids, 2, list(range(6)), values).effects
    for name in ("loss_total", "loss_direct", "entropy_total"):
        mine = torch.from_numpy(ds["effects"].sel(effect=name).values).double()
        assert truth[name].nan_to_num().abs().max() > 0.01
        torch.testing.assert_close(mine, truth[name], rtol=0, atol=1e-4, equal_nan=True)
    with pytest.raises(ConfregError, match="no heads that can be ablated: its row is derived"):
        confreg.plan("bos_ablation", heads="1.2", length=5, **choice)


def test_a_tested_architecture_is_not_verified_again(checkpoint, words, tmp_path):
    choice = {"model": str(checkpoint("llama")), "text": words, **CHOICE}
    ds = confreg.run("entropy_neurons", out=tmp_path / "o.zarr", **choice)
    assert not [name for name in ds.attrs if name.startswith("verified")]


def test_a_derived_row_that_is_wrong_measures_nothing(words, tmp_path, monkeypatch):
    table = {k: v for k, v in families.ARCHITECTURES.items() if k != "hyperclovax"}
    monkeypatch.setattr(lookup, "ARCHITECTURES", table)
    model = Model.wrap(*zoo.tiny("hyperclovax"))
    assert model.description.row.origin == "derived"
    with pytest.raises(ConfregError, match=r"not what its row says: logits by the row.s scale"):
        confreg.run("entropy_neurons", model=model, text=words, out=tmp_path / "o.zarr", **CHOICE)


def test_a_multimodal_model_that_sees_ahead_is_refused(words, tmp_path):
    config = CONFIG_MAPPING["paligemma"](**zoo._around("gemma"))
    network = classes.auto_class("paligemma").from_config(config).eval()
    zoo.randomise(network, torch.Generator().manual_seed(0))
    model = Model.wrap(network, zoo.tokenizer())
    assert model.description.row.origin == "derived"
    with pytest.raises(ConfregError, match="predictions and the same with another last token"):
        confreg.run("entropy_neurons", model=model, text=words, out=tmp_path / "o.zarr", **CHOICE)


def test_a_norm_after_act_and_up_makes_other_neurons():
    config = CONFIG_MAPPING["bitnet"](**zoo.CONFIGS["llama"])
    row = derived.derive(config, config, "tiny", classes.weightless(config))
    assert (row.up, row.gate, row.norm_before) == ("", "", None)


def test_a_norm_that_is_called_twice_is_refused():
    config = CONFIG_MAPPING["nanochat"](**zoo.CONFIGS["llama"])
    with pytest.raises(ConfregError, match="its final norm is called at other places too"):
        lookup.find(config, "tiny", lambda: classes.weightless(config))


def test_the_command_says_what_was_compared_and_keeps_it(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path / "rows"))
    monkeypatch.setenv("COLUMNS", "80")
    main(["verify", saved])
    said = capsys.readouterr().out
    assert "row derived" in said
    for part in ("logits", "neurons", "scale", "causal", "exact", "series", "heads"):
        assert part in said
    (record,) = (json.loads(f.read_text()) for f in (tmp_path / "cache/verified").iterdir())
    assert record["ok"]
    assert record["architecture"] == UNKNOWN
    assert record["versions"]["transformers"]
    main(["models"])
    listed = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in listed.splitlines())
    assert "Verified on this machine" in listed
    assert "Refused" in listed


def test_the_command_refuses_what_differs(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "mine.toml").write_text(f'model_type = "{UNKNOWN}"\nlike = "llama"\nmultiplier = 0.5\n')
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(rows))
    with pytest.raises(SystemExit) as ended:
        main(["verify", saved])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert "differs" in out
    assert "effects by forward and by exact differ" in err
    assert f"Mend {rows / 'mine.toml'} (docs/architectures.md says how)" in err
    (record,) = (json.loads(f.read_text()) for f in (tmp_path / "cache/verified").iterdir())
    assert not record["ok"]
    # A run is refused alike, and one with the right row says where that is from.
    choice = {"model": saved, "text": ["w3 w4 w5 w6 w7 w8 w9"] * 4, **CHOICE}
    with pytest.raises(ConfregError, match="not what its row says"):
        confreg.run("entropy_neurons", out=tmp_path / "o.zarr", **choice)
    # So is one that is wrong in what neurons read, which entropy_neurons does not look at.
    swapped = 'up = "mlp.gate_proj"\ngate = "mlp.up_proj"\nnorm_before = "input_layernorm"\n'
    (rows / "mine.toml").write_text(f'model_type = "{UNKNOWN}"\nlike = "llama"\n{swapped}')
    with pytest.raises(ConfregError, match="row says: neurons by the row's norm_before, up and"):
        confreg.run("entropy_neurons", out=tmp_path / "o.zarr", **choice)
    (rows / "mine.toml").write_text(f'model_type = "{UNKNOWN}"\nlike = "llama"\n')
    ds = confreg.run("entropy_neurons", out=tmp_path / "p.zarr", **choice)
    assert ds.attrs["verified_row"].startswith(f"{rows / 'mine.toml'}, verified to ")
    assert np.isfinite(ds["te"]).all()
    assert models.describe(saved).row.origin == str(rows / "mine.toml")
    # Its numbers are of that row: a store goes on with no other, nor with none.
    confreg.run("entropy_neurons", out=tmp_path / "p.zarr", **choice)
    (rows / "mine.toml").write_text(f'model_type = "{UNKNOWN}"\nlike = "llama"\neps = 1e-5\n')
    changed = r"another configuration \(architecture_row: '.*mine\.toml, \w+' there, '{}, \w+' now"
    with pytest.raises(ConfregError, match=changed.format(r".*mine\.toml")):
        confreg.run("entropy_neurons", out=tmp_path / "p.zarr", **choice)
    (rows / "mine.toml").unlink()
    with pytest.raises(ConfregError, match=changed.format("derived")):
        confreg.run("entropy_neurons", out=tmp_path / "p.zarr", **choice)


@pytest.mark.parametrize("architecture", ["llama", "olmo2", "gemma4_text"])
def test_a_server_verifies_too(architecture):
    """As a remote run makes the requests up, and reads them."""
    nnsight.register("confreg.effects")
    here, ids = model_of(architecture), zoo.tokens(1)
    expected = agreement.engines(here, ids)
    there = Model(here.nn, here.description)
    there.trace = functools.partial(there.trace, remote="local")
    found = agreement.engines(there, ids)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-5)
    assert found["largest"] > 0.3
    if architecture == "gemma4_text":
        own = float(here.nn._module.model.layers[-1].layer_scalar)
        assert there.learnt == {2: pytest.approx(own, rel=1e-6)}
