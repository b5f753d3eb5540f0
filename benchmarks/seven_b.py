"""A 7B model under 8 GB of memory: ``python -m benchmarks.seven_b``.

Writes a random checkpoint of Llama-2-7B's shape in bfloat16 (13.5 GB), runs `entropy_neurons`
over 512 tokens and all 11,008 neurons of the last layer with the profile ``offload`` in a
process that the operating system limits to 8 GB, and prints what it cost. Everything it wrote
is removed afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confreg.errors import ConfregError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    # A polite stop unwinds, so that everything is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.measure:
        print(json.dumps(measure(options)), flush=True)
        return 0
    try:
        return benchmark(options)
    except ConfregError as error:
        print(f"seven_b: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seven_b", description=__doc__)
    parser.add_argument("--shape", choices=["7b", "small"], default="7b")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint and the store")
    parser.add_argument("--limit", type=float, default=8.0, help="GB of memory (default: 8)")
    parser.add_argument("--no-limit", action="store_true", help="enforce no limit")
    parser.add_argument("--weights", default="4GB", help="max_memory.cpu of the profile")
    parser.add_argument("--memory", default="1.5GB", help="what the closed forms may use beside")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument(
        "--dtype",
        default="float32",
        help="computed in; the weights on disk stay bfloat16 (default: float32, which a CPU "
        "without bfloat16 arithmetic computes several times faster)",
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    return parser


def benchmark(options: argparse.Namespace) -> int:
    """Write the checkpoint, measure in a limited process, print, clean up."""
    from benchmarks import checkpoints
    from benchmarks.limits import Usage, run_limited

    with _folder(options) as folder:
        model = folder / "checkpoint"
        if not (model / "model.safetensors.index.json").is_file():
            started = time.monotonic()
            size = checkpoints.write(model, checkpoints.SHAPES[options.shape])
            _say(f"wrote {size / 1e9:.2f} GB of weights in {time.monotonic() - started:.0f} s")
        report = folder / "measured.json"
        command = [sys.executable, "-m", "benchmarks.seven_b", "--measure", *_passed(options)]
        command += ["--folder", str(folder)]
        if options.no_limit:
            import subprocess

            usage = Usage(subprocess.run(command, check=False).returncode)
        else:
            usage = run_limited(command, int(options.limit * 1e9))
        if usage.returncode:
            what = "was killed: it went over the limit" if usage.returncode in (-9, 137) else ""
            raise ConfregError(f"The run {what or f'failed with status {usage.returncode}'}.")
        found = json.loads(report.read_text())
        _print(found, usage, options)
        return 0 if found["complete"] else 1


def _passed(options: argparse.Namespace) -> list[str]:
    names = ("shape", "weights", "memory", "tokens", "dtype")
    return [word for name in names for word in (f"--{name}", str(getattr(options, name)))]


@contextmanager
def _folder(options: argparse.Namespace):
    if options.folder is not None and options.keep:
        options.folder.mkdir(parents=True, exist_ok=True)
        yield options.folder
        return
    with tempfile.TemporaryDirectory(prefix="confreg-seven-b-", dir=options.folder) as folder:
        yield Path(folder)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In the limited process: load, one bare pass, then the run, each timed."""
    import torch

    import confreg
    from confreg import api, places
    from confreg.places import profiles
    from confreg.sweep.run import Run

    folder = str(options.folder / "checkpoint")
    profile = profiles.load("offload", {"max_memory.cpu": options.weights, "dtype": options.dtype})
    out = options.folder / "seven_b.zarr"
    plan = confreg.plan(
        "entropy_neurons",
        model=folder,
        profile=profile,
        max_tokens=options.tokens,
        memory=options.memory,
    )
    about, tokens = plan.place.model.about, plan.axes["token"]
    layout = profile.placement().plan(about)
    clock = Clock()
    with clock.step("load"):
        model = plan.place.load(plan.place.model)
    inputs = torch.from_numpy(_stack(tokens.table.sequences))
    with clock.step("pass"):
        head = model.unembedding
        with torch.no_grad(), model.trace(inputs):
            checked = head.output.isfinite().all().save()
    assert bool(checked)
    store = api.open_store(plan, out, overwrite=True)
    with places.entered(plan.place, out, plan.configuration, clock):
        Run(plan, store, clock).execute()
    ds = confreg.open(out)
    found = {
        "parameters": about.parameters,
        "neurons": len(plan.axes["neuron"]),
        "tokens": len(tokens),
        "planned_read": layout.read_per_pass,
        "complete": bool(ds.attrs["complete"]),
        "finite": bool(ds["te"].notnull().all()),
        "error_max": float(ds.attrs.get("error_max", float("nan"))),
        "units": math.prod(plan.layout("effects").counts),
        "seconds": clock.seconds,
        "read": clock.read,
    }
    (options.folder / "measured.json").write_text(json.dumps(found))
    return found


def _stack(sequences: list[Any]) -> Any:
    import numpy as np

    length = max(map(len, sequences))
    return np.stack([np.pad(s, (0, length - len(s))) for s in sequences])


class Clock:
    """Stands for the run's progress, and notes each step's seconds and bytes read."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.read: dict[str, int] = {}

    def say(self, sentence: str) -> None:
        _say(sentence)

    @contextmanager
    def step(self, name: str):
        started, before = time.monotonic(), _read_bytes()
        yield
        self.seconds[name] = time.monotonic() - started
        self.read[name] = _read_bytes() - before
        _say(f"{name}: {self.seconds[name]:.1f} s, {self.read[name] / 1e9:.2f} GB read")

    @contextmanager
    def bar(self, name: str, total: int, unit: str):
        with self.step(name):
            yield lambda by: None


def _read_bytes() -> int:
    """Bytes that this process made the disk deliver; page cache hits cost nothing."""
    import psutil

    try:
        return psutil.Process().io_counters().read_bytes
    except (AttributeError, psutil.Error):
        return 0


def _say(sentence: str) -> None:
    print(f"seven_b: {sentence}", file=sys.stderr, flush=True)


def _print(found: dict[str, Any], usage: Any, options: argparse.Namespace) -> None:
    seconds, read = found["seconds"], found["read"]
    # Means over tokens that do not fit one unit of work take a pass of their own.
    parts = [name for name in ("ablation values", "effects") if name in seconds]
    sweep, sweep_read = (sum(each[name] for name in parts) for each in (seconds, read))
    limit = "no limit" if options.no_limit else f"{options.limit:.1f} GB, enforced"
    rows = {
        "model": f"{found['parameters'] / 1e9:.2f} billion parameters, run in {options.dtype}",
        "work": f"{found['neurons']} neurons x {found['tokens']} tokens in {found['units']} units",
        "memory limit": limit,
        "peak memory, page cache included": f"{usage.peak / 1e9:.2f} GB",
        "peak memory, anonymous": f"{usage.anonymous / 1e9:.2f} GB",
        "load": f"{seconds['load']:.1f} s, {read['load'] / 1e9:.2f} GB read",
        "one pass": f"{seconds['pass']:.1f} s, {read['pass'] / 1e9:.2f} GB read "
        f"({found['planned_read'] / 1e9:.2f} GB planned)",
        "weight-space statistics": f"{seconds['weight-space statistics']:.1f} s",
        "sweep, its pass included": f"{sweep:.1f} s, {sweep_read / 1e9:.2f} GB read",
        "sweep / pass": f"{sweep / seconds['pass']:.2f}",
        "largest error of the sample": f"{found['error_max']:.1e} nats",
        "store": "complete" if found["complete"] and found["finite"] else "NOT COMPLETE",
    }
    for name, value in rows.items():
        print(f"{name:34}{value}")


if __name__ == "__main__":
    raise SystemExit(main())
