"""The sweep by itself: how steps are cut into units, what blocks must be, and what is refused."""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
import shutil
import sys
import tokenize
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from zarr.storage import LocalStore

import confreg
from confreg import Axis, ConfregError, Derivation, Step, Variable
from confreg.axes import Later
from confreg.progress import Progress
from confreg.sweep.budget import Budget
from confreg.sweep.layout import Layout, cut, lay_out
from confreg.sweep.plan import Plan
from confreg.sweep.run import Run
from confreg.sweep.step import check, flat
from confreg.sweep.store import Store

ROOT = Path(__file__).parent.parent
BUDGET = Budget(memory=10**9, tokens=8)


def trace(model, unit):
    raise NotImplementedError


def texts(*lengths):
    """An axis whose entries are of sequences of these lengths."""
    which = np.repeat(np.arange(len(lengths)), lengths)
    axis = Axis.of("token", np.arange(len(which)), "token")
    return Axis("token", axis.labels, whole=which)


def layered(*sizes):
    """An axis whose entries are of layers of these sizes."""
    which = np.repeat(np.arange(len(sizes)), sizes)
    axis = Axis.of("unit", np.arange(len(which)), "unit")
    return Axis("unit", axis.labels, together=which)


GIVES = (
    Variable("each", ("unit", "token"), "one a pair", "nats"),
    Variable("turned", ("token", "unit"), "one a pair, the other way round"),
    Variable("total", ("unit",), "sum over tokens", dtype="float64", added_over=("token",)),
    Variable("most", ("token",), "largest over units", largest_over=("unit",)),
    Variable("text", ("token",), "the same whatever the unit", dtype="int64"),
    Variable("number", (), "the same everywhere"),
)


def layout(units=None, tokens=None, gives=GIVES, budget=BUDGET, **options) -> Layout:
    units, tokens = units or layered(5), tokens or texts(4, 4, 6)
    step = Step(trace, over=(units, tokens), gives=gives, **options)
    return lay_out(step, "00_trace", {"unit": units, "token": tokens}, budget)


def block_of(spans, whole):
    """What a unit's trace returns, cut out of ``whole``, a table (units, tokens)."""
    part = whole[spans["unit"], spans["token"]]
    return {
        "each": torch.from_numpy(part),
        "turned": torch.from_numpy(part.T.copy()),
        "total": torch.from_numpy(part.astype(np.float64).sum(1)),
        "most": torch.from_numpy(part.max(0)),
        "text": torch.arange(spans["token"].start, spans["token"].stop),
        "number": 7,
    }


def test_entries_that_stay_together_never_share_a_unit():
    assert cut(layered(3, 5), 100) == [(0, 3), (3, 8)]
    assert cut(layered(3, 5), 2) == [(0, 2), (2, 3), (3, 5), (5, 7), (7, 8)]
    assert cut(layered(5), 4) == [(0, 3), (3, 5)]  # of one size, as far as they can be


def test_what_is_whole_is_not_cut_apart():
    assert cut(texts(4, 4, 6), 8) == [(0, 8), (8, 14)]
    assert cut(texts(4, 4, 6), 1) == [(0, 4), (4, 8), (8, 14)]
    assert cut(texts(4, 4, 6), 100) == [(0, 14)]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("axis", [layered(3, 1, 9), texts(3, 1, 9), layered(13)])
def test_spans_cover_an_axis_once_and_in_order(axis, most):
    spans = cut(axis, most)
    assert [i for a, b in spans for i in range(a, b)] == list(range(13))
    if axis.whole is None:
        assert max(b - a for a, b in spans) <= most
    for a, b in itertools.chain(spans):
        if axis.together is not None:
            assert len(set(axis.together[a:b])) == 1
        if axis.whole is not None and b < 13:
            assert axis.whole[b - 1] != axis.whole[b]


def test_an_axis_of_nothing_has_one_empty_unit():
    assert cut(Axis.of("set", np.array([]), "?"), 5) == [(0, 0)]


def test_text_is_cut_by_the_budget_and_by_what_the_step_says():
    assert layout().cuts == {"unit": [(0, 5)], "token": [(0, 8), (8, 14)]}
    dear = Budget(memory=1, tokens=8, dear=True)
    assert layout(budget=dear).cuts["token"] == [(0, 14)]
    most = layout(most=lambda budget: {"unit": 2, "token": 4}).cuts
    assert most == {"unit": [(0, 2), (2, 4), (4, 5)], "token": [(0, 4), (4, 8), (8, 14)]}


def test_units_that_differ_along_the_first_axis_follow_each_other():
    found = layout(most=lambda budget: {"unit": 3})
    assert found.counts == (2, 2)
    assert [spans.at for spans in found.units()] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [spans.number for spans in found.units()] == [0, 2, 1, 3]
    assert {spans.count for spans in found.units()} == {4}
    assert found.unit((1, 1)).key == "1.1"
    assert found.passes == 2


def test_shapes_and_chunks_follow_dims():
    found = layout(most=lambda budget: {"unit": 3})
    spans = found.unit((1, 1))
    assert [found.shape(v, spans) for v in GIVES] == [(2, 6), (6, 2), (2,), (6,), (6,), ()]
    assert [found.shape(v) for v in GIVES] == [(5, 14), (14, 5), (5,), (14,), (14,), ()]
    assert found.chunk(GIVES[0]) == (3, 8)


def test_what_is_the_same_in_all_units_is_written_by_the_first():
    found = layout(most=lambda budget: {"unit": 3})
    written = {v.name: [s.key for s in found.units() if found.is_written(v, s)] for v in GIVES}
    every = ["0.0", "1.0", "0.1", "1.1"]
    assert written == {
        "each": every, "turned": every, "total": every, "most": every,
        "text": ["0.0", "0.1"], "number": ["0.0"],
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"uncut": ("token",)}, {"uncut": ("unit",)}])
def test_halves_joined_again_are_the_unit(options):
    whole = np.random.default_rng(0).standard_normal((5, 14)).astype(np.float32)
    found = layout(**options)

    def done(spans, depth):
        halves = found.halves(spans) if depth else None
        if halves is None:
            return found.check(block_of(spans, whole), spans)
        first, second, axis = halves
        assert axis not in options.get("uncut", ())
        assert first.share == second.share == spans.share / 2
        assert (first.number, second.number) == (spans.number, spans.number)
        assert first.key != second.key
        return found.join(done(first, depth - 1), done(second, depth - 1), axis)

    for spans in found.units():
        expected = found.check(block_of(spans, whole), spans)
        for depth in (1, 2, 3):
            joined = done(spans, depth)
            assert list(joined) == list(expected)
            for name, array in expected.items():
                assert joined[name].dtype == array.dtype
                np.testing.assert_allclose(joined[name], array, rtol=1e-6, err_msg=name)


def test_halves_cut_text_first_and_sequences_never():
    found = layout()
    first, second, axis = found.halves(found.unit((0, 0)))
    assert axis == "token"
    assert (first.bounds["token"], second.bounds["token"]) == ((0, 4), (4, 8))
    # One sequence alone: only units can be cut.
    first, second, axis = found.halves(found.unit((0, 1)))
    assert axis == "unit"
    assert (first.bounds["unit"], second.bounds["unit"]) == ((0, 2), (2, 5))
    alone = layout(units=layered(1), tokens=texts(6))
    assert alone.halves(alone.unit((0, 0))) is None


def test_a_unit_is_not_halved_for_ever():
    found = layout(units=layered(1000), tokens=texts(6))
    spans, times = found.unit((0, 0)), 0
    while (halves := found.halves(spans)) is not None:
        spans, times = halves[0], times + 1
    assert times == 6


def test_joining_gathers_by_what_a_variable_declares():
    found = layout()
    first = {
        "each": np.zeros((2, 8), "f4"), "turned": np.zeros((8, 2), "f4"),
        "total": np.array([1.0, 2.0]), "most": np.array([1.0, np.nan]), "number": np.array(7),
    }  # fmt: skip
    second = {
        "each": np.ones((3, 8), "f4"), "turned": np.ones((8, 3), "f4"),
        "total": np.array([4.0, 5.0]), "most": np.array([0.5, 3.0]), "number": np.array(8),
    }  # fmt: skip
    by_unit = found.join(first, second, "unit")
    assert by_unit["each"].shape == (5, 8)
    assert by_unit["turned"].shape == (8, 5)
    assert by_unit["total"].tolist() == [1, 2, 4, 5]
    assert by_unit["most"].tolist() == [1, 3]
    assert by_unit["number"] == 7
    by_token = found.join({"total": first["total"]}, {"total": second["total"]}, "token")
    assert by_token["total"].tolist() == [5, 7]
    assert "text" not in by_unit


GOOD = block_of(layout().unit((0, 0)), np.zeros((5, 14), np.float32))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"extra": torch.zeros(5)},
            r"returned 'extra', which is not declared; declared are: each \('unit', 'token'\)",
        ),
        ({"total": None}, "returned no 'total'; it returned each, turned, most, text, number, and"),
        (
            {"each": torch.zeros(8, 5)},
            r"'each' of shape \(8, 5\); its dims \('unit', 'token'\) have the sizes \(5, 8\)",
        ),
        ({"number": torch.zeros(1)}, r"'number' of shape \(1,\); its dims \(\) have the sizes"),
        ({"text": torch.zeros(8)}, "'text' as float32, which is not to be made int64"),
        ({"each": np.zeros((5, 8), complex)}, "'each' as complex128, which is not to be made"),
    ],
)
def test_a_block_is_held_against_what_its_step_declares(change, sentence):
    found = layout()
    block = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    with pytest.raises(ConfregError, match=f"The trace of 'trace' .*{sentence}"):
        found.check(block, found.unit((0, 0)))


def test_a_block_is_a_mapping():
    found = layout()
    with pytest.raises(ConfregError, match=r"returned Tensor; it returns a dict with an array for"):
        found.check(torch.zeros(2), found.unit((0, 0)))


def test_a_block_may_lack_what_another_unit_writes():
    found = layout(most=lambda budget: {"unit": 3})
    spans = found.unit((1, 1))
    block = block_of(spans, np.zeros((5, 14), np.float32))
    del block["text"], block["number"]
    assert list(found.check(block, spans)) == ["each", "turned", "total", "most"]


def test_blocks_are_made_what_is_declared():
    found = layout()
    block = {**GOOD, "each": torch.zeros(5, 8, dtype=torch.bfloat16), "number": 7}
    checked = found.check(block, found.unit((0, 0)))
    assert {name: str(array.dtype) for name, array in checked.items()} == {
        v.name: v.dtype for v in GIVES
    }


TOKENS, UNITS = texts(4, 4), layered(3)


def step(*gives, over=(UNITS, TOKENS), **options):
    return Step(trace, over=over, gives=gives, **options)


FIRST = step(Variable("a", ("unit",), "?"))


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ([], "returns no step: there is nothing to run"),
        (
            [step(Variable("a", ("image",), "?"))],
            "Variable 'a' of 'trace' has the dim 'image', which no axis has; there are unit, token",
        ),
        (
            [step(Variable("a", (), "?"), Variable("a", ("unit",), "?"))],
            "Variable 'a' of 'trace': there is another variable of this name",
        ),
        (
            [FIRST, Derivation(lambda ds: {}, (Variable("a", (), "?"),))],
            "there is another variable of this name",
        ),
        ([step(Variable("token", (), "?"))], "has the name of an axis or of a label: rename it"),
        (
            [step(Variable("a", (), "?", added_over=("token",)), over=(UNITS,), along=(TOKENS,))],
            "is gathered over 'token', along which the step has no units; it is over unit",
        ),
        (
            [FIRST, step(Variable("b", (), "?"), over=(layered(2), TOKENS))],
            "There are two axes named 'unit'",
        ),
        (
            [step(Variable("b", (), "?"), needs=(FIRST,)), FIRST],
            "Step 'trace' needs 'trace', which must come before it",
        ),
        ([FIRST, "effects"], "returns a list of steps and derivations; str is neither"),
    ],
)
def test_declarations_that_cannot_work_are_sentences(items, sentence):
    with pytest.raises(ConfregError, match=sentence):
        check(flat(items))


def test_lists_may_stand_in_lists_and_nothing_too():
    assert flat([[FIRST, None], (), FIRST]) == [FIRST, FIRST]


class Place:
    """Runs a step's trace on what it is given, without a model."""

    def __init__(self, budget=BUDGET):
        self.budget = budget

    def run(self, layout, units, make):
        for spans in units:
            yield spans, layout.check(layout.step.trace(None, make(spans)), spans)

    def costs(self):
        return []


def run(tmp_path, *items, place=None, name="a.zarr"):
    items = flat(list(items))
    check(items)
    plan = Plan("test", tuple(items), place or Place(), {}, {"title": "test"})
    store = Store.create(tmp_path / name, {}, {})
    Run(plan, store, Progress(False)).execute()
    return confreg.open(tmp_path / name).load()


WHOLE = np.random.default_rng(1).standard_normal((5, 14)).astype(np.float32)


def whole_step(**options):
    def cut_out(model, unit):
        return block_of({"unit": slice(*unit.unit), "token": slice(*unit.token)}, WHOLE)

    units, tokens = layered(2, 3), texts(4, 4, 6)
    entries = [
        Axis(a.name, a.labels, lambda *span: span, together=a.together, whole=a.whole)
        for a in (units, tokens)
    ]
    return Step(cut_out, over=tuple(entries), gives=GIVES, **options)


@pytest.mark.parametrize("most", [{}, {"unit": 1, "token": 1}, {"token": 4}])
def test_a_run_puts_units_together(tmp_path, most):
    ds = run(tmp_path, whole_step(most=lambda budget: most))
    np.testing.assert_array_equal(ds["each"], WHOLE)
    np.testing.assert_array_equal(ds["turned"], WHOLE.T)
    np.testing.assert_allclose(ds["total"], WHOLE.sum(1), rtol=1e-6)
    np.testing.assert_array_equal(ds["most"], WHOLE.max(0))
    np.testing.assert_array_equal(ds["text"], np.arange(14))
    assert ds["number"] == 7
    assert ds.attrs["number"] == 7


def test_a_unit_of_no_numbers_is_no_missing_chunk(tmp_path):
    def nowhere(model, unit):
        return {
            "each": np.full((unit.unit[1] - unit.unit[0], unit.token[1] - unit.token[0]), np.nan)
        }

    step = whole_step(most=lambda budget: {"unit": 1, "token": 1})
    ds = run(tmp_path, replace(step, trace=nowhere, gives=GIVES[:1]))
    assert ds["each"].isnull().all()


def test_derivations_follow_in_spans_and_as_a_whole(tmp_path):
    spans = Derivation(
        lambda ds: {"shifted": ds["each"] - ds["total"]}, by="unit",
        gives=(Variable("shifted", ("unit", "token"), "?"),),
    )  # fmt: skip
    whole = Derivation(
        lambda ds: {"mean": ds["shifted"].mean(), "back": ds["shifted"].transpose("token", "unit")},
        gives=(Variable("mean", (), "?"), Variable("back", ("unit", "token"), "?")),
    )
    small = Place(Budget(memory=2000, tokens=8))
    ds = run(tmp_path, whole_step(), spans, whole, place=small)
    np.testing.assert_allclose(ds["shifted"], WHOLE - WHOLE.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(ds["back"], ds["shifted"])
    assert ds["back"].dims == ("unit", "token")


@pytest.mark.parametrize(
    ("compute", "sentence"),
    [
        (lambda ds: {"other": ds["total"]}, "'share' returned other; declared are share"),
        (lambda ds: {}, "'share' returned nothing; declared are share"),
        (lambda ds: 3, "'share' returned int; declared are share"),
        (
            lambda ds: {"share": ds["total"].values[:3]},
            r"'share' returned 'share' of shape \(3,\); its dims \('unit',\) have the sizes \(5,\)",
        ),
        (
            lambda ds: {"share": ds["most"]},
            r"'share' returned 'share' with the dims \('token',\); declared are \('unit',\)",
        ),
    ],
)
def test_what_a_derivation_returns_is_checked(tmp_path, compute, sentence):
    compute.__name__ = "share"
    found = Derivation(compute, (Variable("share", ("unit",), "?"),))
    with pytest.raises(ConfregError, match=f"The derivation {sentence}"):
        run(tmp_path, whole_step(), found)


def test_an_axis_may_be_known_once_a_step_is_stored(tmp_path):
    first = Step(
        lambda model, unit: {"score": np.array([0.1, 0.9, 0.8])},
        over=(), along=(Axis.of("head", [0, 1, 2], "head"),),
        gives=(Variable("score", ("head",), "?"),), name="scores",
    )  # fmt: skip

    def known(stored):
        return Axis.of("best", np.flatnonzero(stored["score"] > 0.5), "head above a half")

    best = Later("best", known, Axis.of("best", [0], "head above a half"))
    second = Step(
        lambda model, unit: {"doubled": 2.0 * unit.best}, over=(best,),
        gives=(Variable("doubled", ("best",), "?"),), needs=(first,), name="doubling",
    )  # fmt: skip
    ds = run(tmp_path, first, second)
    assert ds["best"].values.tolist() == [1, 2]
    assert ds["doubled"].values.tolist() == [2, 4]


def test_the_first_step_s_parts_are_added_in_the_units_order(tmp_path):
    def big(model, unit):
        return {"total": torch.tensor([1e8, 1.0, -1e8][int(unit.token[0])])}

    tokens = texts(1, 1, 1)
    total = Variable("total", (), "?", added_over=("token",))
    place = Place(Budget(memory=1, tokens=1))
    first = run(tmp_path, Step(big, over=(tokens,), gives=(total,)), place=place)

    class Backwards(Place):
        def run(self, layout, units, make):
            return super().run(layout, units[::-1], make)

    backwards = Backwards(place.budget)
    step = Step(big, over=(tokens,), gives=(total,))
    second = run(tmp_path, step, place=backwards, name="b.zarr")
    assert first["total"].values.tobytes() == second["total"].values.tobytes()


class Killed(Exception):
    """Stands for the end of the process."""


@contextlib.contextmanager
def killed_after(writes: int, monkeypatch):
    """From the given write to the disk on, nothing more is written."""
    count, put = itertools.count(), LocalStore.set

    async def set_(self, key, value, *more):
        if next(count) >= writes:
            raise Killed
        await put(self, key, value, *more)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "set", set_)
        yield count


def everything():
    """Units along two axes, sums, an axis known later, derivations in spans and whole."""
    first = whole_step(most=lambda budget: {"unit": 2, "token": 8})

    def known(stored):
        return Axis.of("best", np.flatnonzero(stored["total"] > 0), "unit of positive sum")

    best = Later("best", known, Axis.of("best", [0], "unit of positive sum"))
    hidden = Variable("doubled", ("best",), "?", added_over=("token",), kept=False)
    second = Step(
        lambda model, unit: {"doubled": (2.0 * unit.best + unit.token[0]).astype("f4")},
        over=(best, first.over[1]), gives=(hidden,), needs=(first,), name="doubling",
    )  # fmt: skip
    spans = Derivation(
        lambda ds: {"shifted": ds["each"] - ds["total"]}, by="unit",
        gives=(Variable("shifted", ("unit", "token"), "?"),),
    )  # fmt: skip
    number = Derivation(
        lambda ds: {"mean": ds["shifted"].mean() + ds["doubled"].sum()},
        gives=(Variable("mean", (), "?"),),
    )
    return [first, spans, second, number]


def digest(path):
    return {
        str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()
    }


def go_on(path):
    items = everything()
    place = Place(Budget(memory=2000, tokens=8))
    plan = Plan("test", tuple(items), place, {}, {"title": "test"})
    store = Store.resume(path, {}) if path.exists() else Store.create(path, {}, {})
    Run(plan, store, Progress(False)).execute()


@pytest.mark.parametrize("part", range(4))
def test_a_run_that_ends_before_any_of_its_writes_ends_with_the_same_bytes(
    tmp_path, monkeypatch, part
):
    with killed_after(10**9, monkeypatch) as count:
        go_on(tmp_path / "whole.zarr")
    writes, whole = next(count), digest(tmp_path / "whole.zarr")
    assert writes > 60
    for number in range(part, writes, 4):
        path = tmp_path / f"{number}.zarr"
        with killed_after(number, monkeypatch), pytest.raises(Killed):
            go_on(path)
        go_on(path)
        found = digest(path)
        wrong = [k for k in {*found, *whole} if found.get(k) != whole.get(k)]
        assert not wrong, f"write {number} of {writes}"
        shutil.rmtree(path)


def test_a_chunk_that_was_lost_is_made_again(tmp_path):
    path = tmp_path / "a.zarr"
    go_on(path)
    whole = digest(path)
    for name in [name for name in whole if "/c" in name and "/done/" not in name]:
        (path / name).unlink()
        go_on(path)
        found = digest(path)
        wrong = [k for k in {*found, *whole} if found.get(k) != whole.get(k)]
        assert not wrong, name


WORDS = re.compile(
    r"(?<![a-z])(neurons?|heads?|loss(es)?|entropy|repeat(s|ed|ing)?)(?![a-z])", re.I
)
# As a noun with an article, an adjective or an `of`; "set" by itself is a verb, or Python's type.
SETS = re.compile(r"\b(a|the|each|every|random|chosen|of|ablated) sets?\b|\bsets\b", re.I)


@pytest.mark.parametrize("file", sorted((ROOT / "src/confreg/sweep").glob("*.py")), ids=str)
def test_the_sweep_knows_no_subject_and_no_effect(file):
    with tokenize.open(file) as source:
        words = [
            (token.start[0], part)
            for token in tokenize.generate_tokens(source.readline)
            if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT)
            or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1)
            for part in token.string.replace("_", " ").splitlines()
        ]
    found = [w for w in words if WORDS.search(w[1]) or SETS.search(w[1])]
    assert not found, f"{file.name}: {found}"


ALLOWED = {"nnsight", "torch", "numpy", "xarray", "scipy", "sklearn", "safetensors"}
FILES = [*(ROOT / "recipes").glob("*.py"), *(ROOT / "examples").glob("*.py")]


def imported(tree):
    """(module, name) of every import; the name is None where the module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), a.name) for a in node.names)


@pytest.mark.parametrize("file", sorted(FILES), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_recipes_import_public_names_only(file):
    for module, name in imported(ast.parse(file.read_text())):
        top = module.partition(".")[0]
        if top != "confreg":
            assert top in ALLOWED | sys.stdlib_module_names, module
        elif module == "confreg":
            assert name is None or name in confreg.__all__, f"confreg.{name}"
        else:
            assert module == "confreg.effects" or module.startswith("confreg.recipes."), module
            if module == "confreg.effects":
                assert name in confreg.effects.__all__, name
