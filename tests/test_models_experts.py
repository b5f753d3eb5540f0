"""Neurons of routed experts, against oracles of weights and outputs that know no expert's MLP."""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace

import declared
import experts_oracle
import numpy as np
import pytest
import resuming
import torch
import tracing
import zoo
from tracing import model_of
from transformers import AutoModelForImageTextToText

import confreg
from confreg import ConfregError, models, report
from confreg import effects as fx
from confreg.effects import Routed
from confreg.effects.engines import closed
from confreg.models import Model, verify
from confreg.models.banks import Bank
from confreg.models.experts import ROWS
from confreg.models.placement import Placement
from confreg.steps.routing import Routing
from confreg.subjects.neurons import choose
from confreg.sweep.store import Store

EVERY, SHARED, BEGIN_PLAIN = zoo.EVERY_OF_EXPERTS, zoo.SHARED, zoo.BEGIN_PLAIN


def chosen(architecture: str, layer: int) -> list[tuple[int | str | None, int, int]]:
    """Expert, index in it and index in the layer of neurons: of six experts of eight, and more."""
    if layer == 0 and architecture in BEGIN_PLAIN:
        return [(None, i, i) for i in (0, 17, 47)]
    found = [(n // 8, n % 8, n) for n in (0, 7, 11, 20, 29, 38, 47)]
    name, width = SHARED.get(architecture, ("", 0))
    return [*found, *((name, i, 48 + i) for i in {0, width - 1} if width)]


@functools.cache
def oracle_of(architecture: str) -> experts_oracle.ExpertsOracle:
    model = model_of(architecture)
    path = f"model.layers.{{}}.{model.description.row.down_projection}"
    return experts_oracle.ExpertsOracle(model.nn._module, path)


@functools.cache
def truth(architecture: str, layer: int):
    """By neuron: activation, where it is there, a value, and what setting it to that does."""
    judge, ids = oracle_of(architecture), zoo.tokens()
    found = []
    for expert, index, _ in chosen(architecture, layer):
        at = (layer, expert, index)
        activation, routed = judge.activation(ids, *at)
        value = float(activation[routed].mean()) + 1.5 if routed.any() else 1.5
        found.append((activation, routed, value, judge.edited(ids, *at, value)))
    return found


def test_the_table_is_tested_whole():
    assert {row.model_type for row in ROWS} == set(zoo.EXPERTS)


@pytest.mark.parametrize("architecture", EVERY)
def test_activations_are_there_where_tokens_are_routed(architecture):
    model = model_of(architecture)
    assert (model.n_experts, model.width(-1)) == (6, 48 + SHARED.get(architecture, ("", 0))[1])
    for layer in (1, 2):
        experts = model.site(layer).neurons
        with model.trace(zoo.tokens()):
            seen = experts.input.save()
        known = zip(chosen(architecture, layer), truth(architecture, layer))
        for (*_, neuron), (activation, routed, *_) in known:
            assert torch.equal(~seen[:, neuron].isnan(), routed)
            torch.testing.assert_close(
                seen[routed, neuron].double(), activation[routed], rtol=1e-4, atol=1e-5
            )
    assert 0.1 < (~seen[:, :48].isnan()).float().mean() < 0.9


@pytest.mark.parametrize("engine", ["exact", "series", "forward"])
@pytest.mark.parametrize("architecture", EVERY)
def test_the_last_layer_agrees_with_the_oracle(architecture, engine):
    compare(architecture, 2, engine)


@pytest.mark.parametrize("architecture", EVERY)
def test_an_earlier_layer_agrees_with_the_oracle(architecture):
    compare(architecture, 1, "forward")


@pytest.mark.parametrize("architecture", [p for p in EVERY if p.values[0] in BEGIN_PLAIN])
def test_a_layer_without_experts_agrees_with_the_oracle(architecture):
    assert model_of(architecture).width(0) == 48
    compare(architecture, 0, "forward")


def compare(architecture: str, layer: int, engine: str) -> None:
    known = truth(architecture, layer)
    neurons = [index for *_, index in chosen(architecture, layer)]
    edits = fx.Replace(torch.tensor(neurons), torch.tensor([each[2] for each in known]))
    engines = tracing.ENGINES[engine]()
    unit = fx.Unit(tracing.all_tokens(zoo.tokens()), edits, engines, tracing.CHOSEN, layer=layer)
    found = tracing.measure(model_of(architecture), unit)["effects"].double()
    largest = 0.0
    for mine, (_, routed, _, expected) in zip(found, known):
        for column, name in enumerate(tracing.EFFECTS):
            if name.startswith(("rank", "top1")):
                continue
            there = expected[name]
            assert torch.equal(mine[:, column].isnan(), there.isnan())
            assert (mine[:, column] - there).nan_to_num().abs().max() <= 1e-4, name
            if layer == 2:
                elsewhere = mine[~routed, column].nan_to_num()
                assert (elsewhere == 0).all(), "a token that is not routed there"
            largest = max(largest, float(there.nan_to_num().abs().max()))
    assert largest > 0.05, "an effect that a test can miss"


@pytest.mark.parametrize("architecture", EVERY)
def test_a_neuron_set_to_zero_is_one_without_its_weight(architecture):
    judge, ids = oracle_of(architecture), zoo.tokens()
    neurons = chosen(architecture, 2)
    edits = fx.Replace(torch.tensor([n for *_, n in neurons]), torch.zeros(len(neurons)))
    unit = fx.Unit(tracing.all_tokens(ids), edits, fx.Exact(), tracing.CHOSEN[:1], layer=2)
    found = tracing.measure(model_of(architecture), unit)["effects"][..., 0].double()
    before = experts_oracle.oracle.loss(judge.logits(ids), ids).flatten()
    for mine, (expert, index, _) in zip(found, neurons):
        logits = judge.without(ids, 2, expert, index)
        expected = experts_oracle.oracle.loss(logits, ids).flatten() - before
        assert (mine - expected).nan_to_num().abs().max() <= 1e-4


@pytest.mark.parametrize("engine", ["exact", "series", "forward"])
def test_an_ordinary_last_layer_has_all_engines(engine):
    network, words = zoo.tiny("qwen3_moe", mlp_only_layers=[2])
    judge, ids = experts_oracle.ExpertsOracle(network, "model.layers.{}.mlp.experts"), zoo.tokens()
    edits, made = fx.Replace(torch.tensor([31]), torch.tensor([0.7])), tracing.ENGINES[engine]()
    unit = fx.Unit(tracing.all_tokens(ids), edits, made, tracing.CHOSEN, layer=2)
    (found,) = tracing.measure(Model.wrap(network, words), unit)["effects"].double()
    expected = judge.edited(ids, 2, None, 31, 0.7)
    for column, name in enumerate(tracing.EFFECTS):
        if not name.startswith(("rank", "top1")):
            assert (found[:, column] - expected[name]).nan_to_num().abs().max() <= 1e-4, name
    assert expected["loss_total"].nan_to_num().abs().max() > 0.01


@pytest.mark.parametrize("engine", ["exact", "series"])
def test_experts_with_many_neurons_are_evaluated_where_they_are(engine):
    """What a whole layer gives, expert by expert, is what its neurons give one by one."""
    network, words = zoo.tiny("qwen3_moe", moe_intermediate_size=72)
    model, tokens = Model.wrap(network, words), tracing.all_tokens(zoo.tokens())
    index = torch.arange(6 * 72)
    edits = fx.Replace(index, torch.linspace(3, 6, len(index)))
    made = tracing.ENGINES[engine]()
    whole = tracing.measure(model, fx.Unit(tokens, edits, made, tracing.CHOSEN, layer=2))
    whole = whole["effects"].nan_to_num()
    judge = experts_oracle.ExpertsOracle(network, "model.layers.{}.mlp.experts")
    for expert, own in ((0, 3), (2, 71), (4, 0)):
        neuron = expert * 72 + own
        routed = judge.activation(zoo.tokens(), 2, expert, own)[1]
        known = judge.edited(zoo.tokens(), 2, expert, own, float(edits.values[neuron]))
        there = known["loss_total"].nan_to_num().float()
        assert 0 < routed.sum() < len(routed)
        assert there.abs().max() > 0.01
        assert (whole[neuron, :, 0] - there).abs().max() < 1e-4
        elsewhere = whole[expert * 72 : expert * 72 + 72, ~routed]
        assert elsewhere.abs().max() < 1e-6
        assert (elsewhere == elsewhere[:1]).all(), "found once for all"


def test_each_large_group_of_neurons_is_a_chunk():
    """Ten neurons of expert 3, all 70 of expert 1, one each of two others, all 70 of expert 5."""
    index = torch.tensor([*range(210, 220), *range(70, 140), 281, 5, *range(350, 420)])
    seen = torch.zeros(6, 420)
    for expert in range(6):
        seen[expert, expert * 70 : expert * 70 + 70] = torch.nan
    routed = SimpleNamespace(is_routed=True)
    observed = SimpleNamespace(edits=fx.Replace(index), write=routed)
    found = [(s.start, s.stop) for s in closed.chunks_of_edits(observed, 100, seen)]
    assert found == [(0, 10), (10, 80), (80, 82), (82, 152)]
    found = [(s.start, s.stop) for s in closed.chunks_of_edits(observed, 40, seen)]
    assert found == [(0, 10), (10, 50), (50, 80), (80, 82), (82, 122), (122, 152)]


OPTIONS = {
    "sequence_length": 16,
    "max_tokens": 96,
    "progress": False,
    "neurons": "expert:3,2.1.0-3",
}


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss"])
def checkpoint_of_experts(request, tmp_path_factory):
    return zoo.save(request.param, tmp_path_factory.mktemp("experts") / request.param)


def run(model, words, out, **options):
    return run_of("entropy_neurons", model, words, out, **options)


def run_of(recipe, model, words, out, **options):
    return confreg.run(recipe, model=model, text=words, out=out, **OPTIONS | options)


@pytest.mark.parametrize("engine", ["series", "exact", "forward"])
def test_a_run_says_where_neurons_are(checkpoint_of_experts, words, tmp_path, engine):
    ds = run(
        str(checkpoint_of_experts), words, tmp_path / "a.zarr", engine=engine, activations=True
    ).load()
    declared.validate(ds)
    assert ds["neuron"].values[[0, 3, 4, 11]].tolist() == ["2.1.0", "2.1.3", "2.3.0", "2.3.7"]
    assert ds["expert"].values.tolist() == [1] * 4 + [3] * 8
    assert ds["index"].values.tolist() == [8, 9, 10, 11, *range(24, 32)]
    network, _ = zoo.tiny(checkpoint_of_experts.name)
    judge = experts_oracle.ExpertsOracle(network, "model.layers.{}.mlp.experts")
    ids = [torch.from_numpy(part.values) for _, part in ds["token_id"].groupby(ds["sequence"])]
    keep = torch.from_numpy(ds["keep"].values)
    for name, which in (("2.1.2", 10), ("2.3.5", 29)):
        parts = [judge.activation(each[None], 2, which // 8, which % 8) for each in ids]
        activation, routed = (torch.cat(each) for each in zip(*parts))
        mine = ds.sel(neuron=name)
        assert 0 < routed.sum() < len(routed)
        assert torch.equal(torch.from_numpy(mine["activation"].values).isnan(), ~routed)
        mean = activation[routed].mean()
        assert abs(float(mine["ablation_value"]) - mean) < 1e-4
        assert int(mine["routed_tokens"]) == int((routed & keep).sum())
        effects = [judge.edited(each[None], 2, which // 8, which % 8, mean) for each in ids]
        loss = torch.cat([each["loss_total"] for each in effects])
        found = torch.from_numpy(mine["effects"].sel(effect="loss_total").values).double()
        assert (found - loss).nan_to_num().abs().max() < 1e-4
        size = loss.abs()
        assert abs(float(mine["te"]) - size[keep].mean()) < 1e-4
        routed_mean = mine["effect_abs_mean_routed"].sel(effect="loss_total")
        assert abs(float(routed_mean) - size[keep & routed].mean()) < 1e-4
        weight = judge.column(2, which // 8, which % 8)
        assert abs(float(mine["w_out_norm"]) - weight.norm()) < 1e-4


@pytest.mark.parametrize("architecture", EVERY)
def test_offloaded_to_disk_it_is_the_same(architecture, tmp_path, monkeypatch):
    """Fused weights are fetched where their module has not been called yet."""
    folder = str(zoo.save(architecture, tmp_path / architecture))
    row = models.describe(folder).row
    placed = Placement(
        device_map={"": "cpu", row.layers: "disk"}, offload_folder=str(tmp_path / "disk")
    )
    offloaded, inside = models.load(folder, placed), models.load(folder)
    assert any(p.is_meta for p in offloaded.site(2).neurons.experts._module.parameters())
    neurons = [index for *_, index in chosen(architecture, 2)]
    edits = fx.Replace(torch.tensor(neurons), torch.linspace(-1, 1, len(neurons)))
    for layer, engine in ((2, "exact"), (2, "series"), (1, "forward")):
        made = tracing.ENGINES[engine]()
        unit = fx.Unit(tracing.all_tokens(zoo.tokens()), edits, made, tracing.CHOSEN, layer=layer)
        mine, expected = (tracing.measure(m, unit)["effects"] for m in (offloaded, inside))
        assert expected.nan_to_num().abs().max() > 0.01
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5, equal_nan=True)
    right = Routed.columns
    found = verify.experts(offloaded, zoo.tokens())
    assert found.ok
    assert found.largest > 0.3
    monkeypatch.setattr(Routed, "columns", lambda self, n, like: right(self, (n + 8) % 48, like))
    assert not verify.experts(offloaded, zoo.tokens()).ok


@pytest.mark.parametrize("device", ["cpu", "disk"])
def test_a_multimodal_llama_4_is_measured_as_it_is(tmp_path, device):
    """From a checkpoint with its vision tower, as its text model alone is."""
    network = AutoModelForImageTextToText.from_config(zoo.config("llama4")).float().eval()
    zoo.randomise(network, torch.Generator().manual_seed(0))
    network.save_pretrained(tmp_path / "llama4")
    zoo.tokenizer().save_pretrained(tmp_path / "llama4")
    placed = Placement(
        device_map={"": "cpu", "model.layers": device}, offload_folder=str(tmp_path / "disk")
    )
    model = models.load(str(tmp_path / "llama4"), placed)
    assert (model.architecture, model.description.row.wraps) == ("llama4", "llama4_text")
    alone = Model.wrap(network.language_model, zoo.tokenizer())
    for layer, engine in ((2, "exact"), (1, "forward"), (0, "forward")):
        neurons = torch.tensor([n for *_, n in chosen("llama4_text", layer)])
        edits, made = fx.Replace(neurons, torch.linspace(-1, 1, len(neurons))), tracing.ENGINES
        unit = fx.Unit(
            tracing.all_tokens(zoo.tokens()), edits, made[engine](), tracing.CHOSEN, layer=layer
        )
        mine, expected = (tracing.measure(m, unit)["effects"] for m in (model, alone))
        assert expected.nan_to_num().abs().max() > 0.01
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5, equal_nan=True)


def test_sets_of_experts_neurons_go_together(checkpoint_of_experts, words, tmp_path):
    options = {k: v for k, v in OPTIONS.items() if k != "neurons"}
    found = {
        engine: confreg.run(
            "group_ablation", model=str(checkpoint_of_experts), text=words, engine=engine,
            neurons="2.1.0,2.3.2,2.5.1;2.0.0,2.0.4", random_sets=2, out=tmp_path / f"{engine}.zarr",
            **options,
        ).load()
        for engine in ("exact", "forward")
    }  # fmt: skip
    np.testing.assert_allclose(found["exact"]["effects"], found["forward"]["effects"], atol=2e-5)
    assert (found["exact"]["te"] > 1e-3).any()


@pytest.mark.parametrize(
    ("neurons", "said"),
    [
        ("2.8", "layer 2 of this model has experts 0 to 5, each with neurons 0 to 7, and a shared"),
        ("2.x", "'2.x' is not understood. Write all | 15.3.0"),
        ("2.shared.16", "a shared one with neurons 0 to 15"),
        ("0.32", "layer 0 of this model has an ordinary MLP with neurons 0 to 31"),
        ("0.1.2", "layer 0 of this model has an ordinary MLP"),
        ("expert:6", "experts 0 to 5, each with neurons 0 to 7"),
        ("2.1.8", "experts 0 to 5, each with neurons 0 to 7"),
        ("2.1.5-3", "experts 0 to 5"),
        ("3.1.0", "There is no layer 3"),
    ],
)
def test_neurons_that_are_not_there(neurons, said):
    with pytest.raises(ConfregError, match=re.escape(said)):
        choose(neurons, -1, 3, 64, 0, [Bank(0, 32), Bank(6, 8), Bank(6, 8, 16)])


@pytest.mark.parametrize(
    "architecture", ["deepseek_v3", pytest.param("qwen2_moe", marks=[pytest.mark.slow])]
)
def test_shared_experts_and_ordinary_layers_are_named_beside_routed_ones(
    architecture, words, tmp_path
):
    model, judge = model_of(architecture), oracle_of(architecture)
    expert, width = SHARED[architecture]
    names = "0.5,2.shared.1-2,2.4.3"
    ds = run(model, words, tmp_path / "a.zarr", neurons=names, activations=True).load()
    declared.validate(ds)
    assert ds["neuron"].values.tolist() == ["0.5", "2.4.3", "2.shared.1", "2.shared.2"]
    assert ds["expert"].values.tolist() == [-2, 4, -1, -1]
    assert ds["index"].values.tolist() == [5, 35, 49, 50]
    kept = int(ds["keep"].sum())
    routed = ds["routed_tokens"].values
    assert routed[[0, 2, 3]].tolist() == [kept] * 3
    assert 0 < routed[1] < kept
    ids = [torch.from_numpy(part.values) for _, part in ds["token_id"].groupby(ds["sequence"])]
    for name, at in {"0.5": (0, None, 5), "2.shared.2": (2, expert, 2)}.items():
        seen = torch.cat([judge.activation(each[None], *at)[0] for each in ids])
        mine = ds.sel(neuron=name)
        assert np.abs(mine["activation"].values - seen.numpy()).max() < 1e-4
        effects = [judge.edited(each[None], *at, seen.mean()) for each in ids]
        loss = torch.cat([each["loss_total"] for each in effects])
        found = torch.from_numpy(mine["effects"].sel(effect="loss_total").values).double()
        assert (found - loss).nan_to_num().abs().max() < 1e-4
    ds = run_of("token_frequency_neurons", model, words, tmp_path / "b.zarr", all_layers=True)
    missing = ds["frequency_cosine_all"].isnull().sum("model_index")
    assert missing.values.tolist() == [width, 0, 0]
    every = choose("expert:shared", -1, 3, 64, 0, model.banks)
    assert (len(every), every.names[-1]) == (width, f"2.shared.{width - 1}")
    layer = choose("all", 0, 3, 64, 0, model.banks)
    assert (len(layer), layer.names[-1]) == (48, "0.47")


def test_neurons_that_are_routed_to_most(checkpoint_of_experts, words, tmp_path):
    network, _ = zoo.tiny(checkpoint_of_experts.name)
    judge = experts_oracle.ExpertsOracle(network, "model.layers.{}.mlp.experts")
    ds = run(
        str(checkpoint_of_experts), words, tmp_path / "a.zarr", neurons="routed:top:11,2.1.0"
    ).load()
    ids = [torch.from_numpy(part.values) for _, part in ds["token_id"].groupby(ds["sequence"])]
    keep = torch.from_numpy(ds["keep"].values)
    order = []
    for expert in range(6):
        for own in range(8):
            parts = [judge.activation(each[None], 2, expert, own) for each in ids]
            activation, routed = (torch.cat(each) for each in zip(*parts))
            there = routed & keep
            size = float(activation[there].square().mean()) if there.any() else 0.0
            order.append((-int(there.sum()), -size, f"2.{expert}.{own}"))
    expected = {name for *_, name in sorted(order)[:11]}
    assert len({count for count, *_ in order}) > 2
    assert set(ds["neuron"].values) == expected | {"2.1.0"}
    rare = [name for *_, name in sorted(order)[-8:]]
    assert not expected & set(rare)


def test_what_is_routed_to_most_is_found_once_for_a_store(
    checkpoint_of_experts, words, tmp_path, monkeypatch
):
    """A run that was killed goes on with the neurons that it began with, and asks no more."""
    given = {"neurons": "routed:top:5", "unit_tokens": 16, "layer": 1, "unit_copies": 2}
    whole = run(str(checkpoint_of_experts), words, tmp_path / "whole.zarr", **given)
    units = []

    def broken(self, layout, spans, block):
        units.append(layout.step.title)
        if units.count("effects") > 2:
            raise KeyboardInterrupt
        return write(self, layout, spans, block)

    write = Store.write_unit
    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_unit", broken)
        with pytest.raises(KeyboardInterrupt):
            run(str(checkpoint_of_experts), words, tmp_path / "a.zarr", **given)
    assert units.count("routing") >= 1
    monkeypatch.setattr(Routing, "measure", lambda *_: pytest.fail("measured again"))
    found = run(str(checkpoint_of_experts), words, tmp_path / "a.zarr", **given)
    assert found["neuron"].values.tolist() == whole["neuron"].values.tolist()
    assert resuming.digest(tmp_path / "a.zarr") == resuming.digest(tmp_path / "whole.zarr")
    with pytest.raises(ConfregError, match="made by another configuration"):
        run(
            str(checkpoint_of_experts),
            words,
            tmp_path / "a.zarr",
            **given | {"neurons": "routed:top:6"},
        )


def test_a_store_without_results_passes_its_routing_on_to_its_own_text_only(
    checkpoint_of_experts, words, tmp_path, monkeypatch
):
    """A run that was killed before it had measured anything is replaced by one of another text."""

    def broken(self, layout, spans, block):
        if layout.step.title != "routing":
            raise KeyboardInterrupt
        return write(self, layout, spans, block)

    def neurons(text, out):
        given = {"neurons": "routed:top:5", "max_tokens": 60}
        return run(str(checkpoint_of_experts), text, tmp_path / out, **given)["neuron"].values

    write, others = Store.write_unit, [" ".join(reversed(words[-1].split()))] * 2
    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_unit", broken)
        with pytest.raises(KeyboardInterrupt):
            neurons(words, "a.zarr")
    with monkeypatch.context() as patched:
        patched.setattr(Routing, "measure", lambda *_: pytest.fail("measured again"))
        patched.setattr(Store, "write_unit", broken)
        with pytest.raises(KeyboardInterrupt):
            neurons(words, "a.zarr")
    found = neurons(others, "a.zarr").tolist()
    assert found == neurons(others, "fresh.zarr").tolist()
    assert found != neurons(words, "others.zarr").tolist()


def test_routing_is_over_what_the_recipe_keeps(checkpoint_of_experts, tmp_path):
    model = str(checkpoint_of_experts)
    documents = [
        {"text": " ".join(f"w{i * j % 90}" for i in range(1, 17)), "kind": str(j % 2)}
        for j in range(1, 9)
    ]
    for kind in ("0", "1"):
        ds = run(
            model,
            documents,
            tmp_path / f"{kind}.zarr",
            neurons="routed:top:1",
            columns=["kind"],
            keep=[f"kind={kind}"],
        )
        routed, kept = int(ds["routed_tokens"][0]), int(ds["keep"].sum())
        every = run(
            model,
            documents,
            tmp_path / f"{kind}-all.zarr",
            neurons="all",
            columns=["kind"],
            keep=[f"kind={kind}"],
            reduce="token",
        )
        assert kept > 0
        assert routed == every["routed_tokens"].max()


def test_a_plan_says_what_of_the_cube_is_empty(checkpoint_of_experts, words, tmp_path):
    model = str(checkpoint_of_experts)
    given = OPTIONS | {"neurons": "all", "max_tokens": 960}
    plan = confreg.plan("entropy_neurons", model=model, text=words, **given)
    said = dict(plan.rows())
    each, tokens = models.describe(model).config.num_experts_per_tok, len(plan.axes["token"])
    assert f"48 of layer 2, of which a token has about {8 * each}" in said["neuron"]
    assert "where there is nothing" in said["on disk"]
    assert said["effects"].endswith("keeps the cube")
    (effects,) = (each for each in plan.layouts if each.step.title == "effects")
    cube = 48 * tokens * len(plan.axes["effect"]) * 4
    assert effects.bytes_on_disk - effects.bytes_filled == cube - int(cube * each / 6)
    reduced = confreg.plan("entropy_neurons", model=model, text=words, reduce="token", **given)
    assert dict(reduced.rows())["on disk"].endswith("before compression")
    assert dict(reduced.rows())["effects"].endswith("keeps sums over tokens in place of the cube")
    assert reduced.bytes_on_disk < plan.bytes_on_disk / 5
    run(model, words, tmp_path / "a.zarr", neurons="all", max_tokens=960)
    stored = sum(f.stat().st_size for f in (tmp_path / "a.zarr/effects").rglob("*"))
    assert stored < cube * each / 6 * 1.2


def test_routing_is_of_routed_experts(checkpoint_of_experts, words, checkpoint):
    def plan(model, neurons):
        return confreg.plan(
            "entropy_neurons", model=str(model), text=words, **OPTIONS | {"neurons": neurons}
        )

    assert "one more pass" in dict(plan(checkpoint_of_experts, "routed:top:3").rows())["routing"]
    for spec in ("routed:top:0", "routed:top:49", "routed:top:", "routed:top:x"):
        with pytest.raises(ConfregError, match="takes a number from 1 to 48, which is how many"):
            plan(checkpoint_of_experts, spec)
    with pytest.raises(ConfregError, match="layer 2 of this model has no routed experts"):
        plan(checkpoint("llama"), "routed:top:3")
    with pytest.raises(ConfregError, match="expert:3: this model has no experts"):
        plan(checkpoint("llama"), "expert:3")
    with pytest.raises(ConfregError, match="and no shared one"):
        plan(checkpoint_of_experts, "expert:shared")


def test_a_page_about_experts(checkpoint_of_experts, words, tmp_path):
    """Underlined where neurons are there, and saying which tokens a mean is over."""
    ds = run(
        str(checkpoint_of_experts),
        words,
        tmp_path / "a.zarr",
        neurons="expert:3",
        activations=True,
    )
    assert ds["expert_index"].values.tolist() == list(range(8))
    page = report.write(ds, tmp_path / "a.html").read_text()
    assert "its mean over all tokens that are routed to it" in page
    under = [float(value) for value in re.findall(r"--a:(-?[0-9.]+)", page)]
    assert 0.05 < np.mean(np.array(under) != 0) < 0.9
    assert max(map(abs, under)) == 1


@pytest.mark.parametrize("architecture", ["deepseek_v3", "qwen2_moe"])
def test_where_there_are_no_weights_shared_experts_are_reached_by_calls(architecture, monkeypatch):
    model, ids = model_of(architecture), zoo.tokens()
    monkeypatch.setattr(fx.Routed, "sealed", lambda self: True)
    where = [i for i, (expert, *_) in enumerate(chosen(architecture, 2)) if isinstance(expert, str)]
    known = [truth(architecture, 2)[i] for i in where]
    index = torch.tensor([chosen(architecture, 2)[i][2] for i in where])
    edits = fx.Replace(index, torch.tensor([value for *_, value, _ in known]))
    for name, made in tracing.ENGINES.items():
        unit = fx.Unit(tracing.all_tokens(ids), edits, made(), tracing.CHOSEN, layer=2)
        found = tracing.measure(model, unit)["effects"][..., 0].double()
        for mine, (*_, expected) in zip(found, known):
            assert (mine - expected["loss_total"]).nan_to_num().abs().max() <= 1e-4, name
    with model.trace(ids):
        seen = model.site(2).neurons.input.save()
    assert seen[:, :48].isnan().all()
    assert not seen[:, 48:].isnan().any()
    routed = fx.Replace(torch.tensor([7]), torch.ones(1))
    for made in tracing.ENGINES.values():
        unit = fx.Unit(tracing.all_tokens(ids), routed, made(), tracing.CHOSEN, layer=2)
        with pytest.raises(RuntimeError, match="weights of routed experts are not in this process"):
            tracing.measure(model, unit)


SANDBOX = {"profile": "ndif", "overrides": {"host": "http://127.0.0.1:9", "sandbox": True}}


def test_a_sandbox_is_refused_before_anything_is_sent(checkpoint_of_experts, words):
    with pytest.raises(ConfregError, match=r"2\.1\.0 and 11 more are neurons of routed experts"):
        confreg.plan(
            "entropy_neurons", model=str(checkpoint_of_experts), text=words, **SANDBOX, **OPTIONS
        )


@pytest.mark.parametrize(
    ("recipe", "options", "refused"),
    [
        ("entropy_neurons", {"neurons": "2.shared.0-7,1.shared.3,0.17"}, ""),
        ("entropy_neurons", {"neurons": "2.shared.0,2.5.7"}, "2.5.7 is a neuron"),
        ("entropy_neurons", {"neurons": "all"}, "2.0.0 and 47 more are neurons"),
        ("confidence_in_context", {"neurons": "0.17,1.4.0"}, "1.4.0 is a neuron"),
        ("group_ablation", {"neurons": "2.shared.0,2.shared.3", "random_sets": 0}, ""),
        ("group_ablation", {"neurons": "2.shared.0,2.3.0"}, "are neurons of routed experts"),
        ("token_frequency_neurons", {"neurons": "0.5"}, ""),
        # It asks for the cosines of whole layers.
        ("token_frequency_neurons", {"neurons": "2.shared.0"}, "cosines: it reads neurons"),
        ("induction", {"neurons": "2.shared.1-3", "length": 6, "random_sets": 2}, "neurons of rou"),
        ("bos_ablation", {"neurons": "2.shared.1", "heads": "0.1", "length": 6}, ""),
        ("bos_ablation", {"neurons": "2.1.1", "heads": "0.1", "length": 6}, "2.1.1 is"),
    ],
)
def test_what_is_chosen_says_whether_a_sandbox_has_it(words, recipe, options, refused):
    model = Model.wrap(*zoo.tiny("deepseek_v3", unsaved=True))
    given = {"model": model, "text": words, "sequence_length": 16, "max_tokens": 96}
    if refused:
        with pytest.raises(ConfregError, match=re.escape(refused)) as error:
            confreg.plan(recipe, **given, **SANDBOX, **options)
        assert "\n" not in str(error.value)
    else:
        assert confreg.plan(recipe, **given, **SANDBOX, **options).layouts


def test_the_public_service_is_a_sandbox(words):
    model = Model.wrap(*zoo.tiny("deepseek_v3", unsaved=True))
    with pytest.raises(ConfregError, match="are neurons of routed experts"):
        confreg.plan("entropy_neurons", model=model, text=words, profile="ndif", **OPTIONS)
