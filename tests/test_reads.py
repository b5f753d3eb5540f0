"""What a notebook's recipe reads is part of what it is."""

from __future__ import annotations

import functools
import linecache

import numpy as np
import pytest
import torch

import confreg
from confreg import ConfregError, reads

SCALE = 1.0
TABLE = {"a": [1, 2], "b": {3.0}}


class Own:
    """Of no package."""

    def __init__(self, number):
        self.number = number

    def times(self, x):
        return x * self.number


def helper(x):
    return x * SCALE


def reading(x, more=2):
    return [helper(y) + more + len(TABLE) for y in (x,)]


def made(array, own):
    def inner(x):
        return own.times(x) + array.sum()

    return inner


def test_the_same_reads_the_same():
    for function in (
        reading,
        made(np.arange(3), Own(2)),
        functools.partial(helper, 3),
        lambda x: x,
    ):
        assert reads.digest(function) == reads.digest(function)
    assert reads.digest(made(np.arange(3), Own(2))) == reads.digest(made(np.arange(3), Own(2)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SCALE", 2.0),
        ("TABLE", {"a": [1, 3], "b": {3.0}}),
        ("TABLE", {"a": [1, 2], "b": {4.0}}),
        ("helper", lambda x: x + 1),
        ("helper", functools.partial(helper)),
    ],
)
def test_a_global_that_changes_is_seen_through_what_calls_it(monkeypatch, name, value):
    before = reads.digest(reading)
    monkeypatch.setitem(globals(), name, value)
    assert reads.digest(reading) != before


def test_defaults_closures_arguments_and_objects_are_seen():
    def other(x, more=3):
        return [helper(y) + more + len(TABLE) for y in (x,)]

    given = [
        made(np.arange(3), Own(2)),
        made(np.arange(3.0), Own(2)),
        made(np.arange(4), Own(2)),
        made(torch.arange(3), Own(2)),
        made(np.arange(3), Own(3)),
        made(np.arange(3), "own"),
        reading,
        other,
        functools.partial(helper, 3),
        functools.partial(helper, 4),
        Own(2).times,
        Own(3).times,
    ]
    assert len({reads.digest(each) for each in given}) == len(given)


def test_what_refers_to_itself_ends():
    loop: list = [1]
    loop.append(loop)
    chain: list = []
    for _ in range(200):
        chain = [chain]

    def reads_it(x):
        return loop, chain, reads_it

    assert reads.digest(reads_it) == reads.digest(reads_it)


SOURCE = """
import nnsight
import confreg
from confreg import Axis, Step, Variable, recipe

def read(model, unit):
    site = model.site(unit.neuron.layer)
    with model.trace(unit.token.inputs):
        found = site.neurons.input[..., unit.neuron.index].flatten(0, 1).T * SCALE
        nnsight.save(found)
    return {"scaled": found.detach().cpu()[:, unit.token.positions]}

@recipe()
def scaled(study):
    tokens, neurons = study.tokens(), study.neurons()
    value = Variable("scaled", ("neuron", "token"), "activation, scaled")
    return Step(read, over=(neurons, tokens), gives=(value,))
"""


def test_a_cell_that_was_run_again_with_another_number_is_another_run(tmp_path, checkpoint, words):
    name = "<ipython-input-reads>"
    linecache.cache[name] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), name)
    cell: dict = {"__name__": "__main__", "SCALE": 1.0}
    exec(compile(SOURCE, name, "exec"), cell)

    def go(**options):
        return confreg.run(
            cell["scaled"], model=str(checkpoint("llama")), text=words, sequence_length=16,
            max_tokens=48, neurons="2:0-3", progress=False, out=tmp_path / "a.zarr", **options,
        ).load()  # fmt: skip

    first = go()
    np.testing.assert_array_equal(go()["scaled"], first["scaled"])
    cell["SCALE"] = 50.0
    with pytest.raises(ConfregError, match="recipe_sha256"):
        go()
    np.testing.assert_allclose(go(overwrite=True)["scaled"], 50 * first["scaled"], rtol=1e-6)
