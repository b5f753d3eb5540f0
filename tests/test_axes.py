"""Axes, labels and variables by themselves: what they hold and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from confreg import Axis, ConfregError, Label, Variable
from confreg.axes import Later, Spans


def test_an_axis_is_its_labels():
    axis = Axis.of(
        "image", [3, 4, 5], "image", digit=Label(np.array(["a", "b", "c"]), "what it shows")
    )
    assert len(axis) == 3
    assert list(axis.labels) == ["image", "digit"]
    assert axis.labels["digit"].values.dtype == object
    assert axis.labels["digit"].attributes == {"long_name": "what it shows"}
    assert axis.entries(1, 3).tolist() == [4, 5]
    assert axis.describe() == "3"


def test_entries_are_what_travels():
    axis = Axis.of("alpha", [0.0, 1.0, 4.0], "multiple", "1", entries=lambda a, b: ("mine", a, b))
    assert axis.entries(0, 2) == ("mine", 0, 2)
    assert axis.labels["alpha"].attributes == {"long_name": "multiple", "units": "1"}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Axis.of("two words", [1], "?"), "a name that is an identifier, not 'two words'"),
        (
            lambda: Axis("image", {"digit": Label(np.arange(2), "?")}),
            "first label of axis 'image' must be 'image', its index; there are digit",
        ),
        (lambda: Axis("image", {}), "first label of axis 'image' must be 'image'"),
        (
            lambda: Axis.of("image", [1, 2], "image", digit=Label(np.arange(3), "?")),
            "Label 'digit' of axis 'image' has 3 values for 2 entries",
        ),
        (lambda: Variable("a", "token", "?"), r"dims are a tuple of names, \('token',\), not text"),
        (
            lambda: Variable("a", ("token",), "?", added_over=("token",)),
            "has the dim 'token' and is added over it: one or the other",
        ),
        (
            lambda: Variable("a", (), "?", added_over=("token",), largest_over=("image",)),
            "either added over axes or the largest over them",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ConfregError, match=sentence):
        make()


def test_a_label_of_several_dims_may_have_another_length():
    member = Label(np.ones((2, 7), bool), "whether it is in", dims=("set", "neuron"))
    axis = Axis.of("set", ["a", "b"], "set", member=member)
    assert axis.labels["member"].values.shape == (2, 7)


def test_a_variable_says_how_parts_become_one():
    added = Variable("sum", (), "?", "nats", added_over=("token",))
    largest = Variable("most", (), "?", "", largest_over=("token",))
    assert added.attributes == {"long_name": "?", "units": "nats"}
    assert largest.attributes == {"long_name": "?"}
    assert added.gathered_over == largest.gathered_over == ("token",)
    assert added.gather(2.0, 3.0) == 5.0
    assert largest.gather(2.0, 3.0) == 3.0
    assert largest.gather(np.nan, 3.0) == 3.0


def test_a_later_axis_is_counted_as_it_is_assumed():
    known = Axis.of("set", ["a"], "set")
    later = Later("set", lambda stored: known, Axis.of("set", ["a", "b"], "set"))
    assert not later.is_known
    assert later.describe() == "2"
    assert later.known({}) is known


def test_spans_name_a_unit():
    spans = Spans({"neuron": (2, 5), "token": (0, 8)}, at=(1, 0), number=2, count=4)
    assert spans["neuron"] == slice(2, 5)
    assert list(spans) == ["neuron", "token"]
    assert len(spans) == 2
    assert spans.size == 24
    assert spans.key == "1.0"
