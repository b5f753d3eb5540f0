"""Is this checkout as fast as another? ``python -m benchmarks.versus OTHER [--rounds 5]``.

Both checkouts measure the same sweeps on SmolLM2-135M, each in a process of its own, with the
Python of its own ``.venv``. A round starts both processes anew and lets them work by turns, so that
what else the machine does in a minute weighs on both, and what one process happens to be given
(pages, threads) does not weigh on all rounds. The script that measures is this file for both; it
calls only what every version has: `confreg.models.load` and `confreg.run`.

A ratio is the other checkout's time over this one's, of two runs next to each other: above 1 this
checkout is the faster one. Seconds of the clock, and of the processor, on which other work on the
machine weighs less. On a busy machine threads wait for each other and even those are off by tens of
percent: set ``OMP_NUM_THREADS=1`` there, or wait until it is quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
# What is timed, and before it a small run of the same kind that is not: imports, caches, threads.
SWEEPS: dict[str, dict[str, Any]] = {
    "series": {"neurons": "all", "max_tokens": 128, "sequence_length": 128},
    "exact": {"neurons": "29:0-127", "max_tokens": 128, "sequence_length": 128},
    "forward": {"neurons": "15:0-15", "max_tokens": 64, "sequence_length": 64},
}
WARM = {"series": "29:0-63", "exact": "29:0-7", "forward": "15:0-1"}


# ------------------------------------------------------------------------ the process that measures


def measure() -> None:
    """Answer the name of a sweep, a line of standard input, with its seconds, a line of JSON."""
    # Answers only: whatever else is printed goes where errors go.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import confreg
    from confreg import models

    model = models.load(MODEL)
    for engine in SWEEPS:
        _sweep(model, engine, neurons=WARM[engine])
    print(json.dumps({"measured": confreg.__file__}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_sweep(model, line.strip())), file=answers)


def _sweep(model: Any, engine: str, **changed: Any) -> dict[str, float]:
    """Seconds of one run, by the clock and of the processor."""
    import confreg

    options = {"memory": "2GB", **SWEEPS[engine], **changed}
    with tempfile.TemporaryDirectory(prefix="confreg-versus-") as folder:
        clock, processor = time.perf_counter(), time.process_time()
        ds = confreg.run(
            "entropy_neurons",
            model=model,
            engine=engine,
            out=Path(folder) / "run.zarr",
            progress=False,
            **options,
        )
        found = {
            "clock": time.perf_counter() - clock,
            "processor": time.process_time() - processor,
        }
        ds.close()
    return found


# ------------------------------------------------------------------------ the process that compares


class Checkout:
    """One checkout's measuring process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        own = root / ".venv" / "bin" / "python"
        environment = dict(os.environ)
        if not own.exists():
            environment["PYTHONPATH"] = str(root / "src")
        python = str(own) if own.exists() else sys.executable
        # -P: the folder of this file is none of the modules' places.
        self.process = subprocess.Popen(
            [python, "-P", str(Path(__file__).resolve()), "--measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
        )

    def ready(self) -> None:
        """Wait until the model is loaded.

        Raises
        ------
        SystemExit
            It measures another checkout's code, or ended.
        """
        measured = Path(self._answer()["measured"]).resolve()
        if not measured.is_relative_to(self.root):
            sys.exit(f"versus: {self.root} would have measured {measured}: install it in its .venv")

    def sweep(self, engine: str) -> dict[str, float]:
        """Seconds of one run."""
        assert self.process.stdin is not None
        self.process.stdin.write(engine + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"versus: the measuring process of {self.root} ended: {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextlib.contextmanager
def _pair(other: Path, this: Path) -> Iterator[dict[str, Checkout]]:
    """Both processes, ready to measure."""
    with contextlib.ExitStack() as stack:
        both = {}
        for side, root in (("other", other), ("this", this)):
            both[side] = Checkout(root)
            stack.callback(both[side].close)
            both[side].ready()  # one after the other: both together would need twice the peak
        yield both


Pairs = dict[str, list[dict[str, dict[str, float]]]]


def compare(other: Path, this: Path, rounds: int, repeats: int, limit: float) -> Pairs:
    """Time both checkouts: pairs of runs next to each other, by engine."""
    found: Pairs = {engine: [] for engine in SWEEPS}
    began, longest = time.monotonic(), 0.0
    for number in range(rounds):
        started = time.monotonic()
        if started - began + longest > limit:
            print(f"stopped before round {number + 1}: it would end after {limit:.0f} s")
            break
        with _pair(other, this) as both:
            for repeat in range(repeats):
                # Whoever goes first changes from pair to pair.
                order = ["other", "this"][:: 1 if (number + repeat) % 2 == 0 else -1]
                for engine, pairs in found.items():
                    pairs.append({side: both[side].sweep(engine) for side in order})
        longest = max(longest, time.monotonic() - started)
        print(f"round {number + 1} of {rounds}: {time.monotonic() - started:.0f} s", flush=True)
    return found


def report(found: Pairs) -> None:
    """Print medians and ratios, engine by engine."""
    print(f"\n{'':22}{'other':>9}{'this':>9}   other/this, pair by pair")
    print(f"{'':22}{'median s':>9}{'median s':>9}   median    min    max   pairs")
    for engine, pairs in found.items():
        for kind in ("clock", "processor"):
            other, this = ([pair[side][kind] for pair in pairs] for side in ("other", "this"))
            ratios = [a / b for a, b in zip(other, this)]
            print(
                f"{engine:10}{kind:12}{statistics.median(other):9.2f}{statistics.median(this):9.2f}"
                f"{statistics.median(ratios):9.3f}{min(ratios):7.3f}{max(ratios):7.3f}"
                f"{len(ratios):8}"
            )


def main(arguments: Iterable[str] | None = None) -> int:
    """Compare, or (``--measure``) be the process that measures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.versus", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("other", type=Path, nargs="?", help="folder of the other checkout")
    parser.add_argument("--this", type=Path, default=ROOT, help="in place of this file's checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each engine in a round")
    parser.add_argument(
        "--limit", type=float, default=480, help="seconds, beyond which no round is begun"
    )
    parser.add_argument("--out", type=Path, help="also write every time to this JSON file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.measure:
        measure()
        return 0
    if options.other is None:
        parser.error("name the folder of the other checkout")
    if options.rounds < 1 or options.repeats < 1:
        parser.error("--rounds and --repeats are 1 or more")
    other, this = options.other.resolve(), options.this.resolve()
    found = compare(other, this, options.rounds, options.repeats, options.limit)
    report(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
