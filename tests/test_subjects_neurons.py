"""What ``--neurons`` names."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import confreg
from confreg import ConfregError, cli
from confreg.options import Options
from confreg.subjects.neurons import choose


def names(spec, seed=0):
    return choose(spec, -1, 3, 48, seed).names.tolist()


def test_random_neurons_are_as_many_as_were_asked_for():
    assert len(names("random:5")) == 5
    assert len(names("random:5,random:5")) == 10
    first, both = set(names("random:5")), set(names("random:5,random:5"))
    assert first < both
    named = names("random:20")[:3]
    for spec in (f"{','.join(named)},random:20", f"random:20,{','.join(named)}"):
        assert len(names(spec)) == 23
        assert set(named) < set(names(spec))
    assert len(names("0.1,0.2,random:48")) == 50
    assert names("random:5", 1) != names("random:5", 0)
    with pytest.raises(ConfregError, match="48 neurons, of which 46 are not named otherwise"):
        names("2.1,2.2,random:47")
    with pytest.raises(ConfregError, match="a layer of this model has 48 neurons"):
        names("random:49")
    with pytest.raises(ConfregError, match="not understood"):
        names("random:five")


def test_random_sets_differ(checkpoint, words):
    plan = confreg.plan(
        "group_ablation", model=str(checkpoint("llama")), text=words, max_tokens=64,
        sequence_length=16, neurons="random:3;random:3", random_sets=1,
    )  # fmt: skip
    sets = plan.layout("effects").axes["set"].sets
    chosen = [m.tolist() for m, kind in zip(sets.members, sets.kind) if kind == "chosen"]
    assert chosen[0] != chosen[-1]


@pytest.mark.parametrize(
    "given",
    [
        ["2.1", "2.2"],
        ("2.1", "2.2"),
        np.array(["2.1", "2.2"], dtype=object),
        xr.DataArray(np.array(["2.1", "2.2"])),
        "2.1,2.2",
    ],
    ids=["list", "tuple", "array", "DataArray", "text"],
)
def test_neurons_may_be_a_list_of_names(given):
    assert Options.read({"neurons": given}).neurons == "2.1,2.2"


@pytest.mark.parametrize("given", [[2, 1], [], None, 2.1, [["2.1"]]])
def test_what_names_no_neurons_is_a_sentence(given):
    with pytest.raises(ConfregError, match="--neurons is text, not"):
        Options.read({"neurons": given})


@pytest.mark.parametrize("flag", [["--neurons", "-1:0-3"], ["--neurons=-1:0-3"]])
def test_a_layer_may_be_counted_from_the_end(checkpoint, tmp_path, capsys, flag):
    (tmp_path / "t.txt").write_text(" ".join(f"w{i}" for i in range(60)))
    cli.main([
        "plan", "entropy_neurons", "--model", str(checkpoint("llama")),
        "--text", str(tmp_path / "t.txt"), "--sequence-length", "32", *flag,
    ])  # fmt: skip
    assert "4 of layer 2" in capsys.readouterr().out
