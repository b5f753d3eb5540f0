"""Neurons that a file or an earlier run names, means from elsewhere, and what two runs share."""

from __future__ import annotations

import itertools

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
import zoo

import confreg
from confreg import cli
from confreg.errors import ConfregError


@pytest.fixture(scope="module")
def run(checkpoint, words, tmp_path_factory):
    """Return a run of a tiny model, 48 tokens."""

    def go(recipe="entropy_neurons", **options):
        options = {"model": str(checkpoint("llama")), "text": words, **options}
        out = tmp_path_factory.mktemp("runs") / "o.zarr"
        return confreg.run(
            recipe, sequence_length=16, progress=False, **{"max_tokens": 48, "out": out, **options}
        )

    return go


@pytest.fixture(scope="module")
def base(run, tmp_path_factory):
    """Where a run over the whole last layer is."""
    out = tmp_path_factory.mktemp("base") / "base.zarr"
    run(out=out)
    return out


def planned(checkpoint, words, spec, recipe="entropy_neurons"):
    plan = confreg.plan(
        recipe, model=str(checkpoint("llama")), text=words, max_tokens=48, sequence_length=16,
        neurons=spec,
    )  # fmt: skip
    return plan.layout("effects").axes["neuron"].index.tolist()


FILES = {
    "a.txt": "# the best\n2.5\n\n2:7-8, 1.3  # and one before\n",
    "a.csv": "index,layer,why\n5,2,x\n7,2,y\n8,2,\n3,1,z\n",
    "a.tsv": "layer\tindex\n2\t5\n2\t7\n2\t8\n1\t3\n",
    "a.jsonl": "".join(
        f'{{"layer": {layer}, "index": {i}}}\n' for layer, i in ((2, 5), (2, 8), (2, 7), (1, 3))
    ),
}


@pytest.mark.parametrize("name", [*FILES, "a.parquet"])
def test_a_file_names_neurons(checkpoint, words, tmp_path, name):
    file = tmp_path / name
    if name in FILES:
        file.write_text(FILES[name])
    else:
        pytest.importorskip("pyarrow")
        pd.DataFrame({"layer": [2, 2, 2, 1], "index": [8, 7, 5, 3]}).to_parquet(file)
    assert planned(checkpoint, words, f"@{file}") == ["1.3", "2.5", "2.7", "2.8"]
    assert planned(checkpoint, words, f"0.1,@{file}")[0] == "0.1"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "2.5\nw\n", r"line 2 of .*a\.txt.*'w' is not understood"),
        ("a.txt", "2.48\n", r"line 1 of .*2\.48: a layer of this model has neurons 0 to 47"),
        ("a.txt", "# none\n", "names no neuron"),
        ("a.txt", "random:3\n", r"line 1 of .* names no neurons of its own"),
        ("a.txt", "2.5\nrouted:top:3\n", r"line 2 of .* names no neurons of its own"),
        ("a.csv", "layer,neuron\n2,5\n", r"line 2 of .* has no field 'index'; it has 'layer'"),
        ("a.csv", "layer,index\n2,5\n2,x\n", r"line 3 of .* index is 'x', not a whole number"),
        ("a.csv", "layer,index\n2,5\n9,1\n", r"line 3 of .* names neuron 9\.1, and this model has"),
        ("a.csv", "layer,index\n", "names no neuron"),
    ],
)
def test_a_file_that_names_none_is_said_with_its_line(
    checkpoint, words, tmp_path, name, content, said
):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfregError, match=said):
        planned(checkpoint, words, f"@{tmp_path / name}")


def test_the_first_of_an_earlier_run(base, checkpoint, words, run):
    ds = confreg.open(base).load()
    names = ds["neuron"].values.astype(str)
    for end, by, values in (
        ("top", ":te", ds["te"]),
        ("top", "", ds["te_mediated"]),
        ("bottom", ":logit_var", -ds["logit_var"]),
        ("top", ":entropy_total", ds["effect_abs_mean"].sel(effect="entropy_total")),
    ):
        expected = names[np.argsort(-values.values, kind="stable")[:4]]
        assert sorted(planned(checkpoint, words, f"{base}:{end}:4{by}")) == sorted(expected)
    # Sets, each of its own: the names of a group ablation's sets are as ever.
    group = run("group_ablation", neurons=f"{base}:top:3:te;2.1,2.2", random_sets=2, deviations="0")
    top = names[np.argsort(-ds["te"].values, kind="stable")[:3]]
    member = group["member"].sel(set="chosen-0").values
    assert sorted(group["neuron"].values[member]) == sorted(top)
    with pytest.raises(ConfregError, match="cannot be ranked by 'colour'"):
        planned(checkpoint, words, f"{base}:top:4:colour")
    with pytest.raises(ConfregError, match="There is no store"):
        planned(checkpoint, words, "nowhere.zarr:top:4:te")
    with pytest.raises(ConfregError, match="There is no store 'routed'"):
        planned(checkpoint, words, "routed:top:4:te")
    with pytest.raises(ConfregError, match="'x' is no number of neurons"):
        planned(checkpoint, words, f"{base}:top:x:te")
    with pytest.raises(ConfregError, match="has 48 neurons with that value"):
        planned(checkpoint, words, f"{base}:top:49:te")


def test_a_store_of_other_weights_is_refused(base, words, tmp_path):
    other = zoo.save("llama", tmp_path / "llama", seed=1)
    for options in ({"neurons": f"{base}:top:4:te"}, {"mean_from": str(base)}):
        with pytest.raises(ConfregError, match="is of another model"):
            confreg.plan(
                "entropy_neurons", model=str(other), text=words, sequence_length=16, **options
            )


def test_what_the_command_says(base, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", "entropy_neurons", "--neurons", f"@{tmp_path}/none.txt"])
    assert stopped.value.code == 2
    assert "there is no such file" in capsys.readouterr().err


def activations(network, texts, layer=2):
    judge = oracle.Oracle(network)
    return torch.cat([judge.activations(ids, layer).flatten(0, -2) for ids in texts])


def sequences(words, length=16, most=48):
    """Other text as the tiny tokenizer cuts it: joined by </s>, each sequence after <s>."""
    joined = [i for each in words for i in [*(int(w[1:]) for w in each.split()), 1]]
    rows = [[0, *joined[at : at + length - 1]] for at in range(0, len(joined), length - 1)]
    return [torch.tensor(row)[None] for row in rows[: most // length]]


@pytest.mark.parametrize("recipe", ["entropy_neurons", "group_ablation"])
def test_means_over_other_text(run, words, tmp_path, recipe):
    file, other = tmp_path / "other.jsonl", [" ".join(reversed(each.split())) for each in words]
    file.write_text("".join(f'{{"text": "{each}"}}\n' for each in other))
    more = {"random_sets": 2, "deviations": "1"} if recipe == "group_ablation" else {}
    ds = run(recipe, neurons="2.3,2.9", mean_from=str(file), **more).load()
    seen = activations(zoo.tiny("llama")[0], sequences(other))[:, ds["index"].values]
    np.testing.assert_allclose(ds["ablation_value"], seen.mean(0), rtol=1e-5, atol=1e-5)
    own = run(recipe, neurons="2.3,2.9", **more)["ablation_value"].sel(neuron=["2.3", "2.9"])
    at = [ds["neuron"].values.tolist().index(name) for name in ("2.3", "2.9")]
    assert np.abs(own.values - seen.mean(0).numpy()[at]).max() > 0.01
    assert ds.attrs["mean_over_tokens"] == len(seen) == 48
    assert ds.attrs["mean_from"] == str(file)
    assert "other.jsonl" in ds.attrs["mean_from_corpus"]
    if more:
        spread = seen.std(0, correction=0)
        np.testing.assert_allclose(ds["activation_deviation"], spread, rtol=1e-5, atol=1e-5)


def test_means_of_an_earlier_run(run, base, words, tmp_path):
    text = [" ".join(reversed(each.split())) for each in words]
    ds = run(text=text, neurons="2.3,2.9", mean_from=str(base)).load()
    before = confreg.open(base).load()
    np.testing.assert_array_equal(
        ds["ablation_value"], before["ablation_value"].sel(neuron=["2.3", "2.9"])
    )
    network = zoo.tiny("llama")[0]
    judge = oracle.Oracle(network)
    ids = [
        torch.from_numpy(ds["token_id"].values[ds["sequence"].values == s])[None]
        for s in np.unique(ds["sequence"])
    ]
    for row, index in enumerate((3, 9)):
        edit = oracle.setting({index: float(before["ablation_value"][index])})
        found = [judge.edited(each, judge.down.format(2), edit)["loss_total"] for each in ids]
        mine = ds["effects"].isel(neuron=row).sel(effect="loss_total")
        np.testing.assert_allclose(mine, torch.cat(found), atol=1e-4)
    for name in ("corpus", "mean_over_tokens"):
        kept = {"corpus": "mean_from_corpus"}.get(name, name)
        assert ds.attrs[kept] == before.attrs[name]


def test_means_that_are_none_are_said(run, base, tmp_path):
    with pytest.raises(ConfregError, match="ablation='zero' is none"):
        run(neurons="2.3", ablation="zero", mean_from=str(base))
    with pytest.raises(ConfregError, match=r"lacks 1 of the 2 neurons, 1\.4 for one"):
        run(neurons="2.3,1.4", mean_from=str(base))
    with pytest.raises(ConfregError, match="has no 'activation_deviation'"):
        run("group_ablation", neurons="2.3", random_sets=2, mean_from=str(base))
    run(neurons="2.3,2.4", ablation="zero", out=tmp_path / "zero.zarr")
    with pytest.raises(ConfregError, match="that run ablated to 'zero', not to means"):
        run(neurons="2.3", mean_from=str(tmp_path / "zero.zarr"))


def test_what_two_runs_share(run, base):
    first, second = confreg.open(base).load(), run(max_tokens=96).load()
    found = first.confreg.overlap(second, 5, by="te")
    ranks = [
        [str(n) for n in ds["neuron"].values[np.argsort(-ds["te"].values, kind="stable")[:5]]]
        for ds in (first, second)
    ]
    assert found.shared == tuple(n for n in ranks[0] if n in ranks[1])
    assert found.jaccard == len(found.shared) / len({*ranks[0], *ranks[1]})
    assert (found.population, found.expected) == (48, 25 / 48)
    assert first.confreg.overlap(base, 5, by="te").p == pytest.approx(1 / 1_712_304)  # C(48, 5)


def test_the_chance_of_an_overlap_is_that_of_every_choice(run):
    ds = run(neurons="2:0-8").load()
    other = ds.assign(te=ds["te"] * 0 + np.array([3, 9, 1, 8, 2, 7, 4, 6, 5]))
    found = ds.confreg.overlap(other, 3, by="te")
    own = set(np.argsort(-ds["te"].values)[:3].tolist())
    choices = [len(own & set(each)) for each in itertools.combinations(range(9), 3)]
    assert found.p == pytest.approx(np.mean(np.array(choices) >= len(found.shared)))
    assert found.expected == pytest.approx(np.mean(choices))
    with pytest.raises(ConfregError, match="have 4 neurons in common"):
        ds.confreg.overlap(other.isel(neuron=slice(4)), 5, by="te")
    with pytest.raises(ConfregError, match=r"not the same ones: .*48 neurons .*; .*96 neurons"):
        ds.confreg.overlap(other.assign_attrs(model_neurons=96), 3, by="te")
