"""Recipes of a user's own, in a folder of their own: what runs, and what is said when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import confreg
from confreg import ConfregError, cli
from confreg.recipe import find

HEAD = """
import nnsight
import torch

from confreg import Derivation, Step, Variable, recipe, steps
from confreg import effects as fx
from confreg.effects import pick

"""

# One step, one variable: activations as they are, times a number.
SMALL = (
    HEAD
    + '''
@recipe()
def scaled(study, *, times: float = 1.0):
    """Activations, scaled."""
    tokens, neurons = study.tokens(), study.neurons()
    def unit(spans, stored):
        return (
            tokens.entries(*spans.bounds["token"]), int(neurons.layer[0]),
            neurons.entries(*spans.bounds["neuron"]).index, times,
        )
    value = Variable("scaled", ("neuron", "token"), "activation, scaled")
    return Step(read, over=(neurons, tokens), unit=unit, gives=(value,))


def read(model, unit):
    tokens, layer, index, times = unit
    site = model.site(layer)
    with model.trace(tokens.inputs) as tracer:
        found = nnsight.save(pick(site.neurons.input, tokens.positions, index).T * 1.0)
        tracer.stop()
    return {"scaled": times * found}
'''
)

# The trace of entropy_neurons, with a measure of one's own.
MEASURING = (
    HEAD
    + '''
def of(logits, targets):
    return logits.softmax(-1).amax(-1)


LARGEST = fx.Measure("largest", "1", "largest probability", of=of)


@recipe(effects=(LARGEST.total, fx.loss.total))
def measuring(study, *, layer: int = -1):
    """A measure of one's own."""
    tokens, neurons = study.tokens(), study.neurons(layer)
    value = steps.ablation_value(study, neurons, tokens)
    return steps.ablation(study, ablate, neurons, tokens, effects=study.effects(), to=value)


def ablate(model, unit):
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        activation = site.neurons.input
        if unit.copies:
            site.neurons.input = unit.edits.apply(activation, unit.copies)
        block = site.measure(unit, activation)
        nnsight.save(block)

    return block
'''
)

# An edit of one's own.
EDITING = (
    HEAD
    + '''
from confreg import Axis
from confreg.effects import add_to_copies


class Push:
    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def apply(self, residual, copies):
        direction = torch.ones(copies, residual.shape[-1])
        return add_to_copies(residual, copies, self.sizes, direction)


@recipe(effects=(fx.entropy.total,))
def editing(study):
    """An edit of one's own."""
    sizes = Axis.of("size", [0.0, 1.0], "how much", entries=lambda a, b: Push(torch.ones(b - a)))
    return steps.ablation(study, push, sizes, study.tokens(), effects=study.effects(), layer=0)


def push(model, unit):
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        residual = site.residual.input
        site.residual.input = unit.edits.apply(residual, unit.copies)
        block = site.measure(unit, residual)
        nnsight.save(block)

    return block
'''
)


@pytest.fixture
def common(checkpoint, tmp_path, words):
    (tmp_path / "text.txt").write_text("\n".join(words))
    return (
        "--model", str(checkpoint("llama")), "--text", str(tmp_path / "text.txt"),
        "--sequence-length", "16", "--max-tokens", "48", "--quiet",
        "--out", str(tmp_path / "o.zarr"),
    )  # fmt: skip


def call(*arguments: str) -> int:
    try:
        cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def run(path: Path, source: str, common, *more: str) -> int:
    path.write_text(source)
    return call("run", str(path), *common, "--neurons", "2:0-3", *more)


def line_of(source: str, part: str) -> int:
    """Number of the line that holds ``part``."""
    return 1 + next(i for i, line in enumerate(source.splitlines()) if part in line)


def test_the_smallest_recipe_runs(tmp_path, common):
    assert run(tmp_path / "mine.py", SMALL, common, "-p", "times=2", "--max-tokens", "40") == 0
    ds = confreg.open(tmp_path / "o.zarr")
    assert ds["scaled"].dims == ("neuron", "token")
    assert ds["scaled"].attrs == {"long_name": "activation, scaled", "units": "1"}
    assert ds.attrs["recipe"] == "scaled"
    assert ds.attrs["recipe_text"] == SMALL
    assert ds.attrs["parameter_times"] == "2.0"
    assert ds.sizes == {"neuron": 4, "token": 40}


@pytest.mark.parametrize("neurons", ["2:0-3", "1:0-3"])
def test_a_measure_of_one_s_own(tmp_path, common, neurons):
    assert run(tmp_path / "mine.py", MEASURING, common, "--neurons", neurons) == 0
    ds = confreg.open(tmp_path / "o.zarr").load()
    assert ds["largest"].attrs["long_name"] == "largest probability"
    assert ds["effect"].values.tolist() == ["largest_total", "loss_total"]
    assert np.isfinite(ds["effects"].sel(effect="largest_total")).all()
    assert float(np.abs(ds["effects"].sel(effect="largest_total")).max()) > 1e-4


def test_an_edit_of_one_s_own(tmp_path, common):
    assert run(tmp_path / "mine.py", EDITING, common) == 0
    ds = confreg.open(tmp_path / "o.zarr").load()
    assert ds["effects"].dims == ("size", "token", "effect")
    assert float(np.abs(ds["effects"]).max()) > 1e-3


@pytest.mark.parametrize("above", ["", "# a line above\n"])
def test_an_edited_file_gives_the_new_numbers_in_the_same_process(tmp_path, common, above):
    path, out = tmp_path / "mine.py", tmp_path / "o.zarr"
    assert run(path, SMALL, common) == 0
    before = confreg.open(out)["scaled"].values
    edited = above + SMALL.replace("* 1.0)", "* 50.0)")
    assert run(path, edited, common, "--overwrite") == 0
    ds = confreg.open(out)
    np.testing.assert_allclose(ds["scaled"].values, 50 * before, rtol=1e-6)
    assert ds.attrs["recipe_text"] == edited


def test_an_edited_trace_of_effects_too(tmp_path, common):
    path, out = tmp_path / "mine.py", tmp_path / "o.zarr"
    assert run(path, MEASURING, common) == 0
    before = confreg.open(out)["largest"].values
    assert run(path, MEASURING.replace(".amax(-1)", ".amin(-1)"), common, "--overwrite") == 0
    after = confreg.open(out)["largest"].values
    assert (after < before).all()
    assert (after < 0.1).all()


def test_an_edited_file_does_not_go_on_with_the_old_store(tmp_path, common, capsys):
    path = tmp_path / "mine.py"
    assert run(path, SMALL, common) == 0
    assert run(path, SMALL + "\n", common) == 2
    assert "made by another configuration (recipe_sha256" in capsys.readouterr().err


def test_a_recipe_of_a_notebook_cell_is_what_was_run(tmp_path, checkpoint, words):
    """As with IPython: cells are compiled under names of their own, sources in linecache."""
    import linecache

    found = []
    for number, times in enumerate((1.0, 50.0)):
        source = SMALL.replace("* 1.0)", f"* {times})")
        name = f"<ipython-input-{number}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        cell: dict = {"__name__": "__main__"}
        exec(compile(source, name, "exec"), cell)
        found.append(
            confreg.run(
                cell["scaled"], model=str(checkpoint("llama")), text=words, sequence_length=16,
                max_tokens=48, neurons="2:0-3", progress=False, out=tmp_path / f"{number}.zarr",
            )["scaled"].values
        )  # fmt: skip
    np.testing.assert_allclose(found[1], 50 * found[0], rtol=1e-6)


WRONG = {
    "a dim that no axis has": (
        SMALL, '("neuron", "token"), "act', '("neuron", "image"), "act',
        "Variable 'scaled' of 'read' has the dim 'image', which no axis has; there are neuron",
    ),
    "two variables of one name": (
        SMALL, "gives=(value,)", "gives=(value, value)",
        "Variable 'scaled' of 'read': there is another variable of this name.",
    ),
    "a parameter named like an option": (
        SMALL, "times: float = 1.0", "memory: float = 1.0",
        "Parameter 'memory' of recipe 'scaled' has the name of an option of every run: rename it.",
    ),
    "a parameter without a default": (
        SMALL, "times: float = 1.0", "times: float",
        "Parameter 'times' of recipe 'scaled' needs a default value.",
    ),
    "nothing to do": (
        SMALL, "return Step(read", "Step(read",
        "The recipe returns no step: there is nothing to run.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_is_a_sentence_before_a_model_is_loaded(
    tmp_path, common, capsys, monkeypatch, command, case
):
    from confreg.places import Here

    source, old, new, sentence = WRONG[case]
    assert old in source
    monkeypatch.setattr(Here, "load", None)
    (tmp_path / "mine.py").write_text(source.replace(old, new))
    given = [x for x in common if command == "run" or x != "--quiet"]
    assert call(command, str(tmp_path / "mine.py"), *given, "--neurons", "2:0-3") == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "o.zarr").exists()


UNDECLARED = {
    "an array that nobody declared": (
        SMALL, '{"scaled": times * found}', '{"scaled": found, "more": found}',
        "The trace of 'read' returned 'more', which is not declared; declared are: scaled",
    ),
    "an array that is missing": (
        SMALL, '{"scaled": times * found}', "{}",
        "The trace of 'read' returned no 'scaled'; it returned nothing, and declared are: scaled",
    ),
    "another shape": (
        SMALL, '{"scaled": times * found}', '{"scaled": found.T}',
        "returned 'scaled' of shape (48, 4); its dims ('neuron', 'token') have the sizes (4, 48)",
    ),
    "no dict": (SMALL, '{"scaled": times * found}', "found", "returned Tensor; it returns a dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNDECLARED)
def test_a_trace_returns_what_is_declared(tmp_path, common, capsys, case):
    source, old, new, sentence = UNDECLARED[case]
    assert old in source
    assert run(tmp_path / "mine.py", source.replace(old, new), common) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


OWN = {
    "in a measure": (MEASURING, "logits.softmax(-1).amax(-1)", 'logits[None, "key"]', "2:0-3"),
    "in a measure, by interventions": (
        MEASURING, "return logits.softmax(-1).amax(-1)", 'raise ValueError("no such thing")',
        "1:0-3",
    ),
    "in a measure, in closed form": (
        MEASURING, "return logits.softmax(-1).amax(-1)", 'raise ValueError("no such thing")',
        "2:0-3",
    ),
    "in an edit": (
        EDITING, "direction = torch.ones(copies, residual.shape[-1])",
        'raise ValueError("no such thing")', "2:0-3",
    ),
    "in a trace, before it": (
        SMALL, "site = model.site(layer)", 'raise ValueError("no such thing")', "2:0-3",
    ),
    "in a trace, within it": (
        SMALL, "found = nnsight.save(", 'raise ValueError("no such thing"); (', "2:0-3",
    ),
    "in a unit": (SMALL, "return (\n            tokens", 'raise ValueError("no such thing")\n'
                  "        return (\n            tokens", "2:0-3"),
    "in the recipe": (
        SMALL, "value = Variable(", 'raise ValueError("no such thing")\n    value = Variable(',
        "2:0-3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OWN)
def test_an_error_of_one_s_own_is_told_with_its_line(tmp_path, common, capsys, case):
    source, old, new, neurons = OWN[case]
    assert old in source
    source, path = source.replace(old, new), tmp_path / "mine.py"
    assert run(path, source, common, "--neurons", neurons) == 2
    said = capsys.readouterr().err
    line = line_of(source, 'logits[None, "key"]' if "key" in new else "no such thing")
    assert f"confreg: {path}, line {line}: " in said
    if "key" not in new:
        assert "ValueError: no such thing" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1


def test_a_derivation_s_error_too(tmp_path, common, capsys):
    source = SMALL.replace("return Step(", "step = Step(").replace(
        "gives=(value,))\n",
        "gives=(value,))\n"
        '    mean = Variable("mean", ("neuron",), "mean")\n'
        '    return [step, Derivation(lambda ds: {"mean": ds["no such"]}, (mean,))]\n',
    )
    path = tmp_path / "mine.py"
    assert run(path, source, common) == 2
    said = capsys.readouterr().err
    assert f"confreg: {path}, line {line_of(source, 'no such')}: KeyError" in said
    assert "Traceback" not in said


SHAPES = {
    "of": (".amax(-1)", ""),
    "of, with nothing": ("return logits", "logits"),
    "change": ("of=of)", "of=of, change=lambda after, before: after.sum())"),
    "compared": ("of=of)", "compared=lambda before, after: after - before)"),
}


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize("case", SHAPES)
def test_a_measure_of_another_shape_is_a_sentence_before_a_model_is_loaded(
    tmp_path, common, capsys, monkeypatch, command, case
):
    from confreg.places import Here

    monkeypatch.setattr(Here, "load", None)
    old, new = SHAPES[case]
    assert old in MEASURING
    (tmp_path / "mine.py").write_text(MEASURING.replace(old, new))
    given = [x for x in common if command == "run" or x != "--quiet"]
    assert call(command, str(tmp_path / "mine.py"), *given) == 2
    said = capsys.readouterr().err
    assert "Measure 'largest' returned " in said
    assert "one number a prediction" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("neurons", ["2:0-3", "1:0-3"])
def test_a_measure_that_fails_on_real_logits_only(tmp_path, common, capsys, neurons):
    source = MEASURING.replace(
        "return logits.softmax(-1).amax(-1)",
        "if logits.any():\n        raise ValueError('no such thing')\n"
        "    return logits.softmax(-1).amax(-1)",
    )
    path = tmp_path / "mine.py"
    assert run(path, source, common, "--neurons", neurons) == 2
    said = capsys.readouterr().err
    line = line_of(source, "no such thing")
    assert f"confreg: {path}, line {line}: ValueError: no such thing" in said
    assert "Traceback" not in said


def test_a_measure_whose_shape_is_wrong_on_real_logits_only(tmp_path, common, capsys):
    source = MEASURING.replace(".amax(-1)", ".amax(-1)[: 3 if not logits.any() else 2]")
    assert run(tmp_path / "mine.py", source, common) == 2
    said = capsys.readouterr().err
    assert "measure 'largest' returned (2,)" in said
    assert "Traceback" not in said


def test_files_of_the_same_bytes_are_two_recipes(tmp_path, common):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert run(tmp_path / name / "mine.py", SMALL, common, "--overwrite") == 0
        assert find(tmp_path / name / "mine.py").path.parent.name == name


def test_debug_shows_the_traceback(tmp_path, common):
    source, old, new, _ = OWN["in a measure, in closed form"]
    (tmp_path / "mine.py").write_text(source.replace(old, new))
    line = [
        sys.executable, "-m", "confreg.cli", "run", str(tmp_path / "mine.py"), *common,
        "--neurons", "2:0-3",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    plain = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert plain.returncode == 2
    assert "Traceback" not in plain.stderr
    shown = subprocess.run([*line, "--debug"], capture_output=True, text=True, env=environment)
    assert shown.returncode != 0
    assert "Traceback" in shown.stderr
    assert "ValueError: no such thing" in shown.stderr


def test_a_recipe_without_a_source_is_refused(checkpoint, words):
    found: dict = {"__name__": "__main__"}
    exec(compile(SMALL, "<string>", "exec"), found)
    with pytest.raises(ConfregError, match="The source of recipe 'scaled' cannot be found"):
        confreg.plan(
            found["scaled"], model=str(checkpoint("llama")), text=words, sequence_length=16
        )


WITH_HELPER = SMALL.replace("import torch\n", "import torch\nfrom helper import K\n").replace(
    "times * found", "times * K * found"
)


def scaled_by(folder: Path, k: float, **options) -> float:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(WITH_HELPER)
    (folder / "helper.py").write_text(f"K = {k!r}\n")
    ds = confreg.run(folder / "mine.py", **options)
    return float(np.abs(ds["scaled"]).sum())


def test_recipes_have_their_own_helpers_and_a_changed_one_is_seen(checkpoint, words, tmp_path):
    options = {
        "model": str(checkpoint("llama")), "text": words, "neurons": "2:0-3",
        "sequence_length": 16, "max_tokens": 48, "progress": False,
    }  # fmt: skip
    one = scaled_by(tmp_path / "a", 1.0, out=tmp_path / "a.zarr", **options)
    other = scaled_by(tmp_path / "b", 100.0, out=tmp_path / "b.zarr", **options)
    assert other == pytest.approx(100 * one, rel=1e-5)
    again = scaled_by(tmp_path / "a", 1.0, out=tmp_path / "a.zarr", **options)
    assert again == one
    with pytest.raises(ConfregError, match="recipe_sha256"):
        scaled_by(tmp_path / "a", 1000.0, out=tmp_path / "a.zarr", **options)
    replaced = scaled_by(tmp_path / "a", 1000.0, out=tmp_path / "a.zarr", overwrite=True, **options)
    assert replaced == pytest.approx(1000 * one, rel=1e-5)


def test_a_recipe_s_name_is_no_module_s(checkpoint, words, tmp_path):
    import random

    (tmp_path / "random.py").write_text(SMALL)
    find(tmp_path / "random.py")
    assert sys.modules["random"] is random
