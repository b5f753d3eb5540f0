"""Every number of the shipped recipes, kept and compared: ``python -m benchmarks.snapshot``.

    python -m benchmarks.snapshot save DIR        run the recipes, keep every array under DIR
    python -m benchmarks.snapshot compare A B     what B has otherwise than A; exit status 1 if so

For changes that must not move a number: ``save`` before and after, then ``compare``. The recipes
run on tiny random models of five families and on SmolLM2-135M, by every engine, over texts that
are the same each time. Everything that a result may depend on beside the code is fixed: one
thread, the memory budget, the seeds. ``--only WORD`` takes the runs whose name contains WORD
(``--only tiny`` leaves the real model out).

A checkout that lacks this file is measured with its own Python, and this file on the path::

    cd OLD && PYTHONPATH=NEW/benchmarks:tests .venv/bin/python -m snapshot save DIR

``DIR/<run>/<name>.npy`` is one array, a data variable or a coordinate; ``DIR/<run>/run.json`` holds
the arrays' dims, or the error that ended the run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before numpy and torch: sums do not depend on how many cores a machine has.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402

REAL = "smollm2-135m"
# LayerNorm; a norm after the MLP and a softcap; a norm after the MLP; plain; multipliers.
FAMILIES = ("gpt2", "gemma2", "olmo2", "llama", "granite")
# Two of them in every way; the others where what differs between families is computed.
WHOLE = ("gpt2", "olmo2")
CORE = (
    *("entropy-series-all", "entropy-exact-all", "entropy-forward-last", "entropy-forward-early"),
    *("entropy-reduced-series", "entropy-layers", "entropy-percentile", "entropy-kept"),
    *("entropy-units-series", "frequency-last", "frequency-all-layers", "frequency-early"),
    *("context-last", "group-last", "group-early", "induction-text", "induction-text-early"),
    *("induction-ngrams", "bos-named", "bos-top"),
)
# By default the budget follows the memory that is free, and with it how sums are cut.
MEMORY = "1GB"
Options = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One call of `confreg.run`, apart from where it writes."""

    name: str
    recipe: str
    model: str
    options: Options = field(default_factory=dict)


# ---------------------------------------------------------------------------------- what is run


def documents(count: int = 12) -> list[str]:
    """Random text in the tiny tokenizer's language, of 10 to 39 words a document."""
    draw = random.Random(0)
    return [
        " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randrange(10, 40)))
        for _ in range(count)
    ]


def repetitive(count: int = 8) -> list[str]:
    """Documents in which four words come again, after the same words or after others."""
    draw = random.Random(1)
    found = []
    for number in range(count):
        again = [f"w{i}" for i in draw.sample(range(2, 60), 4)]
        before = ["w70" if number % 2 else "w72", "w71"]
        found.append(" ".join(["w80", "w81", "w82", *again, *before, *again, "w70", "w71"]))
    return found


def every_run() -> Iterator[Run]:
    """All runs, in a fixed order."""
    for family in FAMILIES:
        for name, recipe, options in tiny_runs():
            if family in WHOLE or name in CORE:
                yield Run(f"tiny-{family}-{name}", recipe, family, options)
    for name, recipe, options in real_runs():
        yield Run(f"smollm2-{name}", recipe, REAL, options)


def tiny_runs() -> Iterator[tuple[str, str, Options]]:
    """Name, recipe and options of what runs on each family: three layers of 48 neurons."""
    small = {"text": documents(), "sequence_length": 32, "max_tokens": 96}
    every = {"effects": ["all"]}
    for name, options in {
        "series": {"engine": "series"},
        "series-all": {"engine": "series", "activations": True, **every},
        "exact": {"engine": "exact"},
        "exact-all": {"engine": "exact", "activations": True, **every},
        "forward-last": {"engine": "forward", "neurons": "2:0-9", **every},
        "forward-early": {"engine": "forward", "layer": 1, "activations": True, **every},
        "forward-first": {"engine": "forward", "neurons": "0:3-40"},
        "reduced-series": {"engine": "series", "reduce": "token"},
        "reduced-forward": {"layer": 0, "reduce": "token", **every},
        "layers": {"neurons": "0.3,2:5-9,1.1", "activations": True},
        "random-neurons": {"neurons": "random:5", "seed": 3},
        "percentile": {"ablation": "p10", "activations": True},
        "percentile-early": {"ablation": "p90", "neurons": "1:0-9"},
        "zero": {"ablation": "zero"},
        "number": {"ablation": 0.25, "engine": "exact"},
        "kept": {"mean_over": "kept"},
        "kept-early": {"mean_over": "kept", "neurons": "1:0-9"},
        "null-dims": {"null_dims": 4, "neurons": "2:0-9"},
        "documents": {"per_document": True, "max_tokens": None},
        "bfloat16": {"dtype": "bfloat16", **every},
        # More units than one: by the memory, and by the usual size of a unit.
        "units-series": {"engine": "series", "memory": "400kB"},
        "units-exact": {"engine": "exact", "memory": "300kB", "activations": True, **every},
        "units-forward": {"layer": 1, "memory": "200kB"},
        "units-reduced": {"memory": "400kB", "reduce": "token", "mean_over": "kept"},
        "long-series": {"engine": "series", "text": documents(30), "max_tokens": 640},
        "long-exact": {"engine": "exact", "text": documents(30), "max_tokens": 640, **every},
    }.items():
        yield f"entropy-{name}", "entropy_neurons", small | options

    for name, options in {
        "last": {},
        "exact": {"engine": "exact", **every},
        "all-layers": {"all_layers": True, "activations": True},
        "early": {"neurons": "1:3-12", "layer": 1},
        "units": {"memory": "400kB", "reduce": "token"},
        "long": {"text": documents(30), "max_tokens": 640},
    }.items():
        yield f"frequency-{name}", "token_frequency_neurons", small | options

    for name, options in {
        "last": {"neurons": "2:3-20", **every},
        "early": {"neurons": "1:3-12", "layer": 1},
        "zero": {"neurons": "2:3-20", "ablation": "zero"},
        "kept": {"neurons": "2.3,2.9,2.30", "mean_over": "kept", "engine": "exact"},
        "units": {"memory": "400kB"},
    }.items():
        yield f"context-{name}", "confidence_in_context", small | options

    for name, options in {
        "last": {"neurons": "2.3,2.9,2.30;2:5-6", **every},
        "early": {"neurons": "1.3,1.9,1.30;1:5-6", "layer": 1},
        "forward-last": {"neurons": "2.3,2.9,2.30", "engine": "forward", **every},
        "deviations": {"neurons": "2.3,2.9", "deviations": "0,1.5", "mean_over": "kept"},
        "reduced": {"neurons": "2.3,2.9,2.30;2:5-6", "reduce": "token", "random_sets": 9},
        "units": {"neurons": "2.3,2.9,2.30;2:5-6", "memory": "60kB", "random_sets": 9},
        "long": {"neurons": "2.3,2.9", "text": documents(30), "max_tokens": 640},
    }.items():
        yield f"group-{name}", "group_ablation", small | {"random_sets": 3} | options

    again = small | {"neurons": "2.3,2.9,2.30", "random_sets": 3, "length": 8}
    early = {"neurons": "1.3,1.9,1.30", "layer": 1}
    for name, options in {
        "text": every,
        "text-early": early,
        "text-separator": {"separator": "w5 w6", "engine": "exact", "activations": True},
        "text-forward": {"engine": "forward", **every},
        "text-all": {"mean_over": "all"},
        "sets": {"neurons": "2.3,2.9,2.30;2.5,2.40,2.3;2.11"},
        "random": {"repeats": "random", "count": 4},
        "random-early": {"repeats": "random", **early},
        "ngrams": {"repeats": "ngrams", "ngram": 4, "text": repetitive()},
        "ngrams-early": {"repeats": "ngrams", "ngram": 4, "text": repetitive(), **early},
        "units": {"memory": "60kB", "random_sets": 9},
    }.items():
        yield f"induction-{name}", "induction", again | options

    heads = {"length": 8, "score_length": 6, "score_sequences": 5, "random_sets": 2}
    heads = small | heads | {"neurons": "2.3,2.9,2.30", "heads": "0.1,1.3"}
    for name, options in {
        "named": {"activations": True, **every},
        "top": {"heads": "top:2"},
        "above": {"heads": "above:0.05", "random_sets": 0, "max_tokens": 34},
        "any": {"heads": "top:2", "controls": "any", "activations": True},
        "early": {"neurons": "1.3,1.9", "layer": 1, "activations": True},
        "random": {"repeats": "random", "count": 2},
        "reduced": {"reduce": "token"},
        "units": {"memory": "200kB", "random_sets": 3},
    }.items():
        yield f"bos-{name}", "bos_ablation", heads | options


def real_runs() -> Iterator[tuple[str, str, Options]]:
    """Name, recipe and options of what runs on SmolLM2, over the default text."""
    every = {"effects": ["all"]}
    some = {"neurons": "29.100,29.200,29.300", "random_sets": 2}
    yield "entropy-layer", "entropy_neurons", {"max_tokens": 512}
    # What the best temperature leaves is by far the dearest effect: on fewer tokens.
    yield (
        "entropy-all",
        "entropy_neurons",
        {"neurons": "29:0-255", "sequence_length": 32, "max_tokens": 32, **every},
    )
    quick = ["loss_total", "loss_direct", "entropy_total", "entropy_direct", "top1_total"]
    yield (
        "entropy-quick",
        "entropy_neurons",
        {"neurons": "29:0-127", "max_tokens": 256, "effects": [*quick, "rank_total"]},
    )
    yield (
        "entropy-long",
        "entropy_neurons",
        {"neurons": "29:0-255", "max_tokens": 1024, "activations": True},
    )
    yield (
        "entropy-exact",
        "entropy_neurons",
        {"neurons": "29:0-15", "max_tokens": 512, "engine": "exact"},
    )
    yield (
        "entropy-forward",
        "entropy_neurons",
        {"neurons": "15:0-7", "sequence_length": 64, "max_tokens": 64},
    )
    yield (
        "frequency",
        "token_frequency_neurons",
        {"neurons": "29:0-31", "max_tokens": 512, "all_layers": True},
    )
    yield "context", "confidence_in_context", {"neurons": "29:0-31", "max_tokens": 512}
    yield "group", "group_ablation", {**some, "sequence_length": 128, "max_tokens": 128}
    yield "induction", "induction", {**some, "length": 20, "max_tokens": 82}
    yield (
        "induction-random",
        "induction",
        {**some, "repeats": "random", "length": 20, "max_tokens": 82},
    )
    yield "bos", "bos_ablation", {**some, "heads": "18.6", "length": 20, "max_tokens": 82}


# ----------------------------------------------------------------------------------------- save


def save(folder: Path, only: str) -> int:
    """Run everything and keep it under ``folder``; exit status."""
    import torch

    torch.set_num_threads(1)
    failed, started = 0, time.monotonic()
    runs = [run for run in every_run() if only in run.name]
    with tempfile.TemporaryDirectory(prefix="confreg-snapshot-") as scratch:
        models = _Models(Path(scratch))
        for number, run in enumerate(runs, 1):
            said, seconds = _keep(run, models, folder / run.name, Path(scratch) / "run.zarr")
            failed += said is not None
            print(f"{number}/{len(runs)} {run.name} {seconds:.1f} s {said or ''}".rstrip(),
                  flush=True)  # fmt: skip
    minutes = (time.monotonic() - started) / 60
    print(f"\n{len(runs)} runs in {minutes:.1f} minutes, {failed} of them failed: {folder}")
    return int(failed > 0)


class _Models:
    """The models of the runs: tiny ones as folders, the real one loaded once."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.made: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = self._real() if name == REAL else self._tiny(name)
        return self.made[name]

    def _tiny(self, family: str) -> str:
        if importlib.util.find_spec("zoo") is None:
            tests = Path(__file__).resolve().parents[1] / "tests"
            sys.path.insert(0, str(tests / "support"))
        import zoo

        return str(zoo.save(family, self.scratch / family))

    def _real(self) -> Any:
        from confreg import models

        return models.load(REAL)


def _keep(run: Run, models: _Models, folder: Path, out: Path) -> tuple[str | None, float]:
    """Run once and keep its arrays: the error's text, if one was raised, and the seconds taken."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    note: dict[str, Any] = {"recipe": run.recipe}
    started = time.monotonic()
    try:
        note["dims"] = _arrays(run, models, folder, out)
    except Exception as error:  # a run that fails is a finding, and the rest go on
        note["error"] = f"{type(error).__name__}: {error}"
        note["traceback"] = traceback.format_exc()
    finally:
        shutil.rmtree(out, ignore_errors=True)
    seconds = time.monotonic() - started
    (folder / "run.json").write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")
    return note.get("error"), seconds


def _arrays(run: Run, models: _Models, folder: Path, out: Path) -> dict[str, list[str]]:
    """Write every array of a run, and return the dims of each."""
    import confreg

    options = {"memory": MEMORY, **run.options}
    if _takes(run.recipe, "centre_vocabulary"):
        options["centre_vocabulary"] = False  # as in versions that lack the parameter
    ds = confreg.run(run.recipe, model=models.get(run.model), out=out, progress=False, **options)
    dims = {}
    for name in sorted(map(str, ds.variables)):
        values = np.asarray(ds[name].values)
        if values.dtype.kind == "O":
            values = values.astype(str)
        np.save(folder / f"{name}.npy", values, allow_pickle=False)
        dims[name] = [str(dim) for dim in ds[name].dims]
    ds.close()
    return dims


def _takes(recipe: str, parameter: str) -> bool:
    source = inspect.getsource(importlib.import_module(f"confreg.recipes.{recipe}"))
    return re.search(rf"\b{parameter}\s*:", source) is not None


# -------------------------------------------------------------------------------------- compare


@dataclass(frozen=True)
class Difference:
    """How one array differs on both sides.

    Attributes
    ----------
    absolute, relative : float
        The largest of each; infinite where values cannot be subtracted.
    count : int
        Entries that differ.
    beyond : float
        The largest of ``|a - b| / max(1, |a|)``: what the tolerance is held against.
    what : str
        Said beside the numbers, for instance other shapes.
    """

    absolute: float
    relative: float
    count: int
    beyond: float
    what: str = ""

    def __str__(self) -> str:
        said = f"differs by {self.absolute:.3g} absolute, {self.relative:.3g} relative"
        return f"{said}, in {self.count} entries" + (f" ({self.what})" if self.what else "")


@dataclass
class Comparison:
    """What was found of all runs."""

    runs: int = 0
    equal: int = 0
    different: list[tuple[str, Difference]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)


def compare(a: Path, b: Path, only: str, tolerance: float) -> int:
    """Print what B has otherwise than A; 1 if that is a fault, else 0."""
    names = sorted({p.parent.name for side in (a, b) for p in side.glob("*/run.json")})
    names = [name for name in names if only in name]
    if not names:
        print(f"no run of that name in {a} or {b}")
        return 1
    found = Comparison()
    for name in names:
        _compare_run(name, a / name, b / name, found)
    return _summarise(found, tolerance)


def _compare_run(name: str, a: Path, b: Path, found: Comparison) -> None:
    if not (b / "run.json").exists():
        found.missing.append(name)
        print(f"{name}: missing in B")
        return
    if not (a / "run.json").exists():
        print(f"{name}: new in B")
        return
    found.runs += 1
    before, after = (json.loads((side / "run.json").read_text()) for side in (a, b))
    if "error" in before or "error" in after:
        _compare_errors(name, before.get("error"), after.get("error"), found)
        return
    lines, equal = [], 0
    for array, dims in before["dims"].items():
        label = f"{name}/{array}"
        if array not in after["dims"]:
            found.missing.append(label)
            lines.append(f"{array}: missing in B")
            continue
        if after["dims"][array] != dims:
            lines.append(f"{array}: has dims {dims} in A, {after['dims'][array]} in B")
        difference = differ(*(np.load(side / f"{array}.npy") for side in (a, b)))
        if difference is None:
            equal += 1
        else:
            found.different.append((label, difference))
            lines.append(f"{array}: {difference}")
    if new := sorted(set(after["dims"]) - set(before["dims"])):
        lines.append("new in B: " + ", ".join(new))
    found.equal += equal
    print(f"{name}: {equal} of {len(before['dims'])} arrays equal bit by bit")
    print("".join(f"    {line}\n" for line in lines), end="")


def _compare_errors(name: str, before: str | None, after: str | None, found: Comparison) -> None:
    if before is None:
        found.missing.append(name)
        print(f"{name}: fails in B\n    {after}")
    elif after is None:
        print(f"{name}: fails in A only\n    {before}")
    else:
        found.failing.append(name)
        print(f"{name}: fails on both sides\n    A {before}\n    B {after}")


def differ(a: np.ndarray, b: np.ndarray) -> Difference | None:
    """How two arrays differ; None where they are equal bit by bit.

    The width of text is no difference. NaN equals NaN, and nothing else.
    """
    infinite = float("inf")
    if a.shape != b.shape:
        size = max(a.size, b.size)
        return Difference(infinite, infinite, size, infinite, f"shapes {a.shape} and {b.shape}")
    if a.dtype.kind in "US" or b.dtype.kind in "US":
        unlike = int((a.astype(str) != b.astype(str)).sum())
        return Difference(infinite, infinite, unlike, infinite, "text") if unlike else None
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return None
    what = f"dtypes {a.dtype} and {b.dtype}" if a.dtype != b.dtype else ""
    x, y = (_numbers(array) for array in (a, b))
    alike = (x == y) | (np.isnan(x) & np.isnan(y))
    if alike.all():
        return Difference(0.0, 0.0, 0, 0.0, what or "signs of zeros or bits of NaNs")
    x, y = x[~alike], y[~alike]
    with np.errstate(invalid="ignore"):
        away = np.abs(x - y)
    if np.isnan(away).any():
        what = ", ".join(filter(None, [what, "NaN on one side"]))
        away = np.where(np.isnan(away), infinite, away)
    size = np.maximum(np.abs(x), np.abs(y))
    with np.errstate(invalid="ignore"):
        relative = np.where(np.isinf(away), infinite, away / size)
        beyond = np.where(np.isinf(away), infinite, away / np.fmax(1, np.abs(x)))
    return Difference(
        float(away.max()), float(relative.max()), len(away), float(beyond.max()), what
    )


def _numbers(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "mM":
        values = values.astype(np.int64)
    return values.astype(np.longdouble)  # in which 64-bit integers, too, are exact


def _summarise(found: Comparison, tolerance: float) -> int:
    arrays = found.equal + len(found.different)
    print(
        f"\n{found.runs} runs, {arrays} arrays on both sides: {found.equal} equal bit by bit, ",
        end="",
    )
    print(f"{len(found.different)} differing, {len(found.missing)} missing in B.")
    found.different.sort(key=lambda pair: (-pair[1].beyond, -pair[1].absolute))
    for label, difference in found.different:
        print(f"    {label}: {difference}")
    for label in found.missing:
        print(f"    missing: {label}")
    if found.failing:
        print(f"Failing on both sides: {', '.join(found.failing)}.")
    # Tolerance 0 means bit by bit: other signs of zeros are a fault too.
    faults = [d for _, d in found.different if tolerance == 0 or d.beyond > tolerance]
    if tolerance:
        print(f"{len(faults)} arrays differ by more than {tolerance:g} × max(1, |value|).")
    return int(bool(faults or found.missing))


def main(arguments: Iterable[str] | None = None) -> int:
    """Save or compare."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.snapshot", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    saving = commands.add_parser("save", help="run the recipes and keep every array")
    saving.add_argument("folder", type=Path)
    comparing = commands.add_parser("compare", help="what B has otherwise than A")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    comparing.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="absolute below 1, relative above; by default arrays must be equal bit by bit",
    )
    for each in (saving, comparing):
        each.add_argument("--only", default="", help="runs whose name contains this")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.command == "save":
        return save(options.folder, options.only)
    return compare(options.a, options.b, options.only, options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
