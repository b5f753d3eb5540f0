"""Heads ablated to the first token, against plain transformers with masks."""

from __future__ import annotations

import declared
import heads_oracle
import numpy as np
import oracle
import pytest
import torch
import zoo
from resuming import digest

import confreg
from confreg import cli, models
from confreg.errors import ConfregError
from confreg.steps import prefix
from confreg.sweep.store import Store
from confreg.tokens import repeats

SMALL = {
    "length": 8, "score_length": 6, "score_sequences": 5, "random_sets": 2, "max_tokens": 34,
    "progress": False,
}  # fmt: skip


def run(checkpoint, words, out, architecture="llama", **options):
    options = {**SMALL, "heads": "0.1,1.3", "neurons": "2.3,2.9,2.30", **options}
    model = str(checkpoint(architecture))
    return confreg.run("bos_ablation", model=model, text=words, out=out, **options).load()


def members(ds, number: int) -> list[tuple[int, int]]:
    names = str(ds["set_heads"].values[number]).split("+")
    return [tuple(map(int, name.split("."))) for name in names]


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("layer", [2, 1])
def test_every_set_is_the_oracle_s(checkpoint, words, tmp_path, architecture, layer):
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture,
        neurons=f"{layer}.3,{layer}.9,{layer}.30", activations=True, layer=layer,
    )  # fmt: skip
    declared.validate(ds)
    # Two heads, both together, and two controls of each: all of them ran.
    assert ds["set"].values.tolist() == [
        "0.1", "random-0.0", "random-0.1", "1.3", "random-1.0", "random-1.1",
        "0.1+1.3", "random-2.0", "random-2.1",
    ]  # fmt: skip
    judge = heads_oracle.HeadOracle(zoo.tiny(architecture)[0])
    ids = torch.from_numpy(ds["token_id"].values.reshape(2, -1))
    assert torch.equal(ids[:, 1:9], ids[:, 9:])
    clean = judge.activations(ids, layer).flatten(0, -2)[:, [3, 9, 30]].T
    np.testing.assert_allclose(ds["activation"], clean, atol=1e-4)
    keep = ds["keep"].values
    assert (ds["occurrence"].values[keep] == 1).all()
    for i in range(ds.sizes["set"]):
        heads = members(ds, i)
        truth = judge.measured(ids, heads)
        for name in ds["effect"].values:
            mine, expected = ds["effects"].isel(set=i).sel(effect=name), truth[name].flatten()
            repeated = ds["occurrence"].values >= 0
            assert mine[~repeated].isnull().all()
            mine, there = mine[repeated], expected[repeated]
            np.testing.assert_allclose(mine, there, atol=1e-4, err_msg=f"{heads} {name}")
            assert np.abs(expected[keep]).max() > 1e-3, "an effect that a test can miss"
            mean_abs = ds["effect_abs_mean"].isel(set=i).sel(effect=name)
            np.testing.assert_allclose(mean_abs, np.abs(expected[keep]).mean(), atol=1e-4)
        with judge.first_only(heads):
            there = judge.activations(ids, layer).flatten(0, -2)[:, [3, 9, 30]].T
        change = (there - clean).numpy()
        np.testing.assert_allclose(ds["activation_change"][i].T, change, rtol=1e-5, atol=1e-4)
        for name, kept in (("mean", change[:, keep]), ("abs_mean", np.abs(change[:, keep]))):
            found = ds[f"activation_change_{name}"].isel(set=i)
            np.testing.assert_allclose(found, kept.mean(1), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("unit_copies", [16, 3])
def test_one_query_at_a_time(checkpoint, words, tmp_path, architecture, unit_copies):
    ds = run(
        checkpoint, words, tmp_path / "o.zarr", architecture,
        queries="one", activations=True, unit_copies=unit_copies,
    )  # fmt: skip
    declared.validate(ds)
    judge = heads_oracle.HeadOracle(zoo.tiny(architecture)[0])
    ids = torch.from_numpy(ds["token_id"].values.reshape(2, -1))
    clean = judge.activations(ids, 2).reshape(*ids.shape, -1)[..., [3, 9, 30]]
    keep = ds["keep"].values.reshape(ids.shape)
    everywhere = 0.0
    for i in range(ds.sizes["set"]):
        heads = members(ds, i)
        mine = ds["effects"].isel(set=i).values.reshape(*ids.shape, -1)
        moved = ds["activation_change"].isel(set=i).values.reshape(*ids.shape, -1)
        assert np.isnan(mine[~keep]).all()
        assert np.isnan(moved[~keep]).all()
        at_all = judge.measured(ids, heads)["loss_total"].numpy()
        for position in np.flatnonzero(keep.any(0)).tolist():
            truth = judge.measured(ids, heads, position)
            with judge.first_only(heads, position):
                there = judge.activations(ids, 2).reshape(*ids.shape, -1)[..., [3, 9, 30]]
            kept = keep[:, position]
            for number, name in enumerate(ds["effect"].values):
                np.testing.assert_allclose(
                    mine[kept, position, number], truth[name][kept, position], atol=1e-4
                )
            np.testing.assert_allclose(
                moved[kept, position], (there - clean)[kept, position], atol=1e-4
            )
        everywhere = max(everywhere, np.abs(mine[keep][:, 0] - at_all[keep]).max())
    assert everywhere > 1e-3, "both ablations do the same: the test could not tell them apart"
    np.testing.assert_allclose(
        ds["effect_mean"], ds["effects"].isel(token=ds["keep"].values).mean("token"), atol=1e-6
    )


def test_the_joint_ablation_is_no_single_one(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr")
    effects = ds["effects"].sel(effect="loss_total").isel(token=ds["keep"].values).values
    apart = np.abs(effects[:, None] - effects[None]).max(-1)
    assert (apart[~np.eye(len(effects), dtype=bool)] > 1e-3).all()


def scores_by_hand(architecture: str, length: int, count: int, seed: int = 0):
    """Every head's attention to what followed the last time: (sequences, layers, heads)."""
    network, words = zoo.tiny(architecture)
    table = repeats.of_random_tokens(words, length, count, seed=seed)
    ids = torch.from_numpy(np.stack(table.sequences))
    judge = heads_oracle.HeadOracle(network)
    queries = range(1 + length, 1 + 2 * length)  # behind BOS and the first occurrence
    for row in ids:  # what the score's definition relies on
        assert all(row[t] == row[t - length] for t in queries)
    patterns = [judge.patterns(ids, layer) for layer in range(3)]
    found = [[p[:, :, t, t - length + 1] for t in queries] for p in patterns]
    return torch.stack([torch.stack(each).mean(0) for each in found], 1).numpy()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scores_are_the_mean_over_all_sequences(checkpoint, words, tmp_path, architecture):
    ds = run(checkpoint, words, tmp_path / "o.zarr", architecture)
    truth = scores_by_hand(architecture, 6, 5)
    np.testing.assert_allclose(ds["prefix_score"], truth.mean(0), atol=1e-5)


def test_a_head_need_not_pass_in_every_batch(checkpoint, words, tmp_path, monkeypatch):
    """It is scored over all sequences, however many go through the model at once."""
    monkeypatch.setattr(prefix, "TOGETHER", 1)
    each = scores_by_hand("llama", 6, 5)
    mean, worst = each.mean(0), each.min(0)
    best = np.unravel_index(mean.argmax(), mean.shape)
    assert worst[best] < mean[best]
    threshold = (worst[best] + mean[best]) / 2
    expected = {f"{a}.{b}" for a, b in np.argwhere(mean > threshold)}
    ds = run(checkpoint, words, tmp_path / "o.zarr", heads=f"above:{threshold:.9f}", random_sets=0)
    single = ds["set"].values[(ds["set_kind"] == "chosen") & (ds["set_size"] == 1)]
    assert set(single) == expected
    assert f"{best[0]}.{best[1]}" in expected


def test_the_highest_scores(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", heads="top:3", random_sets=1)
    score = ds["prefix_score"].values
    ranked = sorted(np.ndindex(score.shape), key=lambda at: -score[at])[:3]
    chosen = ds["set"].values[ds["set_kind"].values == "chosen"]
    assert chosen.tolist()[:3] == [f"{a}.{b}" for a, b in ranked]
    assert chosen[3] == "+".join(f"{a}.{b}" for a, b in sorted(ranked))


def test_heads_after_the_watched_layer_are_no_candidates(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", heads="top:2", layer=0, neurons="0.1",
             controls="any")  # fmt: skip
    assert {layer for i in range(ds.sizes["set"]) for layer, _ in members(ds, i)} == {0}


@pytest.mark.parametrize("controls", ["same", "any"])
def test_controls(checkpoint, words, tmp_path, controls):
    ds = run(checkpoint, words, tmp_path / "o.zarr", random_sets=5, controls=controls)
    kinds, control = ds["set_kind"].values, ds["set_control"].values
    chosen = {i: members(ds, i) for i in np.flatnonzero(kinds == "chosen")}
    banned = set().union(*chosen.values())
    for own, heads in chosen.items():
        drawn = [
            members(ds, i) for i in np.flatnonzero((control == control[own]) & (kinds == "random"))
        ]
        assert len({tuple(each) for each in drawn}) == len(drawn)
        for each in drawn:
            assert len(each) == len(heads)
            assert not banned & set(each)
            if controls == "same":
                assert sorted(layer for layer, _ in each) == sorted(layer for layer, _ in heads)
        # A layer of four heads has three others: then all of them are the controls.
        assert len(drawn) == (3 if controls == "same" and len(heads) == 1 else 5)


def test_the_share_of_random_sets_that_do_as_much(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr", random_sets=7, activations=True)
    kept = ds.isel(token=ds["keep"].values)
    for found, cube in (("p_random", "effects"), ("activation_p_random", "activation_change")):
        size = np.abs(kept[cube]).mean("token")
        for number, label in enumerate(["0.1", "1.3", "0.1+1.3"]):
            here = size.isel(set=ds["set_control"].values == number)
            expected = (1 + (here[1:] >= here[0]).sum("set")) / here.sizes["set"]
            np.testing.assert_allclose(ds[found].sel(set=label), expected, atol=1e-6)
    assert ds["p_random"].sel(set="random-0.0").isnull().all()


def test_reductions_only(checkpoint, words, tmp_path):
    whole = run(checkpoint, words, tmp_path / "a.zarr")
    reduced = run(checkpoint, words, tmp_path / "b.zarr", reduce="token")
    assert not {"effects", "activation_change"} & set(reduced)
    for name in ("effect_mean", "te", "activation_change_mean", "activation_p_random"):
        np.testing.assert_array_equal(reduced[name], whole[name])


@pytest.mark.parametrize(
    ("heads", "name", "after"),
    [("top:2", "write_unit", 0), ("top:2", "write_unit", 3), ("top:2", "write", 0),
     ("0.1,1.3", "write", 0)],
)  # fmt: skip
def test_a_killed_run_resumes_to_the_same_bytes(
    checkpoint, words, tmp_path, monkeypatch, heads, name, after
):
    options = {"heads": heads, "activations": True, "unit_copies": 4}
    out = tmp_path / "run.zarr"
    run(checkpoint, words, out, **options)
    whole = digest(out)
    out.rename(tmp_path / "whole.zarr")

    real, left = getattr(Store, name), [after]

    def dies(self, *given):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Store, name, dies)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, words, out, **options)
    scored = Store(out).done("00_prefix_scores").all()
    if scored and heads == "top:2":  # heads that were scored are not scored again
        monkeypatch.setattr(prefix, "attention_to_prefixes", None)
    run(checkpoint, words, out, **options)
    assert digest(out) == whole


def test_a_finished_run_is_neither_scored_nor_run_again(checkpoint, words, tmp_path, monkeypatch):
    run(checkpoint, words, tmp_path / "a.zarr", heads="top:2")
    monkeypatch.setattr(models, "load", None)
    run(checkpoint, words, tmp_path / "a.zarr", heads="top:2")
    with pytest.raises(ConfregError, match=r"seed: 0 there, 1 now.*--overwrite"):
        run(checkpoint, words, tmp_path / "a.zarr", heads="top:2", seed=1)


def test_halves_join_to_the_whole(checkpoint, words):
    model = models.load(str(checkpoint("llama")))
    plan = confreg.plan(
        "bos_ablation", model=model, text=words, heads="0.1,1.3", neurons="2:3-9",
        activations=True, **SMALL,
    )  # fmt: skip
    layout = plan.layout("effects")
    spans, *_ = layout.units()
    first, second, axis = layout.halves(spans)
    assert axis == "set"  # a unit of one sequence, which is not cut apart
    assert first.size + second.size == spans.size

    def measure(part):
        with torch.no_grad():
            block = layout.step.trace(model, layout.step.unit(part, {}))
        return layout.check(block, part)

    whole, joined = measure(spans), layout.join(measure(first), measure(second), axis)
    assert joined.keys() == whole.keys()
    for name in whole:
        np.testing.assert_allclose(joined[name], whole[name], atol=2e-5, rtol=1e-4, err_msg=name)


def test_a_plan_counts_heads_that_are_not_known(checkpoint, words, capsys, tmp_path):
    options = {k: v for k, v in SMALL.items() if k != "progress"} | {"random_sets": 3}
    given = {"model": str(checkpoint("llama")), "text": words, "neurons": "2.3", **options}
    plan = confreg.plan("bos_ablation", **given)
    assert len(plan.axes["set"]) == 4 * (1 + 3)  # three heads, and the three together
    assert not plan.layout("effects").step.over[0].is_known
    named = confreg.plan("bos_ablation", heads="0.1,1.3", **given)
    assert len(named.axes["set"]) == 3 * (1 + 3)
    assert named.layout("effects").step.over[0].is_known
    assert named.bytes_on_disk < plan.bytes_on_disk
    arguments = [f"-p{k}={v}" for k, v in options.items() if k not in ("max_tokens",)]
    (tmp_path / "text.txt").write_text("\n".join(words))
    cli.main(["plan", "bos_ablation", "--model", given["model"], "--max-tokens", "34",
              "--text", str(tmp_path / "text.txt"), *arguments])  # fmt: skip
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "as if 3 heads were found" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": "5.1"}, "no layer 5"),
        ({"heads": "1.4"}, "query heads 0 to 3"),
        ({"heads": "L1H2"}, "is not understood"),
        ({"heads": "top:0"}, "is not understood"),
        ({"heads": "above:much"}, "is not understood"),
        ({"heads": "top:99"}, "have 12 heads"),
        ({"heads": "above:0.99"}, r"No head .* the highest are .*top:3"),
        ({"heads": "1.0,1.1,1.2"}, "controls=any"),
        ({"heads": "2.0", "layer": 1, "neurons": "1.3"}, "cannot change them"),
        ({"neurons": "1.3,2.3"}, "of one layer"),
        ({"engine": "exact"}, "--engine forward"),
        ({"score_length": 40}, "positions for 64"),
        ({"profile": "ndif", "heads": "top:2"}, "name the heads, -p heads="),
    ],
)
def test_refusals(checkpoint, words, tmp_path, options, said):
    with pytest.raises(ConfregError, match=said):
        run(checkpoint, words, tmp_path / "o.zarr", **options)


def test_the_command_shows_sets_of_heads(checkpoint, words, tmp_path, capsys):
    run(checkpoint, words, tmp_path / "o.zarr")
    cli.main(["show", str(tmp_path / "o.zarr"), "--by", "te", "-n", "30"])
    assert "0.1+1.3" in capsys.readouterr().out


def test_the_plain_forward_agrees_that_the_repeat_is_what_is_kept(checkpoint, words, tmp_path):
    ds = run(checkpoint, words, tmp_path / "o.zarr")
    ids = torch.from_numpy(ds["token_id"].values.reshape(2, -1))
    loss = oracle.loss(oracle.Oracle(zoo.tiny("llama")[0]).forward(ids)[0], ids)
    np.testing.assert_allclose(ds["loss"], loss.flatten(), atol=1e-4)
    aligned, occurrence = ds["aligned"].values, ds["occurrence"].values
    assert ds["keep"].values.tolist() == ((occurrence == 1) & (aligned < 7)).tolist()


def test_damaged_scores_are_found_again(checkpoint, words, tmp_path):
    out = tmp_path / "o.zarr"
    run(checkpoint, words, out, heads="top:2")
    before = digest(out)
    next(f for f in (out / "prefix_score" / "c").rglob("*") if f.is_file()).write_bytes(b"")
    run(checkpoint, words, out, heads="top:2")
    assert digest(out) == before


NORM_SCALE = """
from confreg.recipes.entropy_neurons import ablate

from confreg import effects, recipe, steps


@recipe(effects=[effects.norm_scale.total])
def scales(study, *, layer: int = -1, ablation: float | str = 0.5):
    tokens, neurons = study.tokens(), study.neurons(layer)
    value = steps.ablation_value(study, neurons, tokens, ablation)
    return steps.ablation(study, ablate, neurons, tokens, effects=study.effects(), to=value)
"""


def test_the_norm_scale_is_an_effect_of_neurons_too(checkpoint, words, tmp_path):
    (tmp_path / "scales.py").write_text(NORM_SCALE)
    options = {"model": str(checkpoint("llama")), "text": words[:1], "neurons": "2.7",
               "max_tokens": 16, "sequence_length": 16, "progress": False}  # fmt: skip
    ds = confreg.run(tmp_path / "scales.py", out=tmp_path / "o.zarr", **options).load()
    assert ds.attrs["engine"] == "forward"
    judge, ids = oracle.Oracle(zoo.tiny("llama")[0]), torch.from_numpy(ds["token_id"].values)[None]

    def replaced(hidden):
        hidden[..., 7] = 0.5
        return hidden

    change = judge.scale(ids, {judge.down.format(2): replaced}) - judge.scale(ids)
    np.testing.assert_allclose(ds["effects"].values.ravel(), change[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfregError, match="reads effects off logits"):
        confreg.plan(tmp_path / "scales.py", engine="exact", **options)
