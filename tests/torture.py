"""What a store survives, tried many times: ``python tests/torture.py WHAT [TIMES]``.

``damage``   every file of a finished store removed, cut and changed in one bit: it opens as it was
             or says so, and running again gives the same bytes
``kills``    SIGKILL at random moments of runs with all engines: the same bytes in the end
``server``   the same of clients of an NDIF server on this machine
``parts``    the server's dispatcher, actor, API and Redis killed while jobs are queued, running and
             finished: the same bytes, in less than five minutes more
``writers``  two and three processes at once that write one store

Takes minutes to an hour, and prints what it found; `make test` holds short forms of all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT / "support")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import zoo  # noqa: E402
from resuming import Command, digest  # noqa: E402
from resuming import damage as spoil  # noqa: E402

TEXT = [" ".join(f"w{2 + (i * 7 + j * 13) % 88}" for i in range(40)) for j in range(8)]
# Layer 2 is the last: the closed forms; layer 1 by forward passes. All in one store.
RUNS = [
    ["--neurons", "1:0-3,2:0-11", "--activations", "--max-tokens", "160"],
    ["--neurons", "2:0-11", "--engine", "series", "--max-tokens", "240"],
    ["--neurons", "1:0-3,2:0-3", "--engine", "forward", "--reduce", "token", "--max-tokens", "96"],
    ["--neurons", "2:0-11", "--engine", "exact", "--keep", "all", "--max-tokens", "160"],
]
PATIENCE = 300.0
STATES = ("queued", "running", "finished")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(TRIALS))
    parser.add_argument("times", nargs="?", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="confreg-torture-") as folder:
        bad = TRIALS[options.what](Path(folder), options.times, random.Random(options.seed))
    print(f"{bad} bad; {time.monotonic() - began:.0f} s")
    sys.exit(bool(bad))


def arguments(folder: Path, *more: str) -> list[str]:
    """A run of a tiny model, in small units."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("\n".join(TEXT))
        zoo.save("llama", folder / "llama")
    return [
        "run", "entropy_neurons", "--model", str(folder / "llama"), "--text", str(text),
        "--out", str(folder / "run.zarr"), "--sequence-length", "16", "--unit-tokens", "16",
        "--unit-copies", "4", "--quiet", *more,
    ]  # fmt: skip


def lasting(digests: dict[str, str]) -> dict[str, str]:
    """Of a store's files those that do not say which jobs it was, with their digests."""
    return {k: v for k, v in digests.items() if not k.startswith(("job_", "work/seal/c"))}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def opened(out: Path) -> str:
    """How a store opens: whole, or what is said."""
    import confreg
    from confreg.results.open import reading

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with reading(out):
                found = confreg.open(out).load()
        except confreg.ConfregError as error:
            return str(error)
    return str(said[0].message) if said else ("whole" if found.attrs["complete"] else "begun")


def damage(folder: Path, times: int, draw: random.Random) -> int:
    """Every file, ``times`` percent of them."""
    line, out = arguments(folder, "--neurons", "2:0-3", "--max-tokens", "32"), folder / "run.zarr"
    run(line, folder)
    whole, kept, bad = digest(out), folder / "kept.zarr", 0
    shutil.copytree(out, kept)
    names = draw.sample(sorted(whole), max(1, len(whole) * times // 100))
    for name in names:
        for how in ("removed", "cut", "changed"):
            spoil(out / name, how, draw.random())
            said = opened(out)
            command = Command(line, folder)
            status = command.wait()
            if status == 2 and name == "zarr.json":  # then it is no store
                shutil.copy(kept / name, out / name)
            elif status or digest(out) != whole:
                bad += 1
                print(f"{name} {how}: opens: {said}; run again: {status} {command.said[-300:]}")
                shutil.rmtree(out)
                shutil.copytree(kept, out)
    print(f"{3 * len(names)} damages of {len(whole)} files")
    return bad


def run(line: list[str], folder: Path) -> float:
    """Run a command to its end; seconds."""
    began = time.monotonic()
    command = Command(line, folder)
    assert command.wait() == 0, command.said
    return time.monotonic() - began


def kills(folder: Path, times: int, draw: random.Random) -> int:
    """Locally, each kind of run in turn."""
    bad = 0
    for number, more in enumerate(RUNS):
        line = arguments(folder, *more)
        bad += killed(
            lambda line=line: Command(line, folder), folder / "run.zarr",
            times // len(RUNS) + (number < times % len(RUNS)), draw,
        )  # fmt: skip
    return bad


def killed(
    start: Callable[[], Command], out: Path, times: int, draw: random.Random, rest: float = 0.0
) -> int:
    """Kill a run ``times`` times, at any moment of its life; compare whenever it ends by itself."""

    def clear() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.with_name(f"{out.name}.jobs.jsonl").unlink(missing_ok=True)

    clear()
    began = time.monotonic()
    command = start()
    assert command.wait() == 0, command.said
    took, whole = time.monotonic() - began, lasting(digest(out))
    clear()
    kills = ends = bad = 0
    states: dict[str, int] = {}
    while kills < times or out.exists():
        command = start()
        end = command.wait(None if kills >= times else draw.uniform(rest, took))
        if end is None:
            command.send(signal.SIGKILL)
            command.wait()
            kills += 1
            said = opened(out) if out.exists() else "nothing written"
            said = "incomplete" if "not complete" in said or "unfinished" in said else said[:60]
            states[said] = states.get(said, 0) + 1
            continue
        changed = differing(whole, lasting(digest(out))) if end == 0 else [command.said[-300:]]
        ends += 1
        if changed:
            bad += 1
            print(f"after {kills} kills: {changed[:5]}")
        clear()
    print(f"{kills} kills in runs of {took:.1f} s, {ends} ends: {bad} with other bytes. {states}")
    return bad


def writers(folder: Path, times: int, draw: random.Random) -> int:
    """Two or three that begin nearly at once, some of which are killed."""
    line, out = arguments(folder, *RUNS[0]), folder / "run.zarr"
    took = run(line, folder)
    whole, bad, refused = digest(out), 0, 0
    for number in range(times):
        shutil.rmtree(out, ignore_errors=True)
        commands = []
        for each in range(2 + number % 2):
            (folder / str(each)).mkdir(exist_ok=True)
            commands.append(Command(line, folder / str(each)))
            time.sleep(draw.choice([0, 0, draw.uniform(0, took / 4), draw.uniform(0, took)]))
        if number % 3 == 2 and commands[0].wait(0) is None:
            commands[0].send(signal.SIGKILL)
        for command in commands:
            status = command.wait()
            refusal = status == 2 and "Another run" in command.said
            refused += refusal
            if not (status == 0 or refusal or (status == -signal.SIGKILL and number % 3 == 2)):
                bad += 1
                print(f"round {number}: {status}: {command.said[-300:]}")
        if not out.exists() or opened(out) != "whole":
            run(line, folder)  # the one that wrote was killed
        if changed := differing(whole, digest(out)):
            bad += 1
            print(f"round {number}: {changed[:5]}")
    print(f"{times} rounds, {refused} writers refused")
    return bad


@contextlib.contextmanager
def served(folder: Path) -> Iterator[object]:
    from test_ndif_server import laboratory

    (folder / "hub").mkdir()
    (folder / "ndif").mkdir()
    with laboratory(folder / "hub", folder / "ndif") as lab:
        yield lab


class Client:
    """A client of the server, as a `Command` is a run."""

    def __init__(self, lab, out: Path, recipe: str, *more: str) -> None:
        from test_ndif_server import start

        self.process: subprocess.Popen[str] = start(lab, recipe, out, *more)
        self.said = ""

    def wait(self, seconds: float | None = None) -> int | None:
        try:
            self.said = self.process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            return None
        return self.process.returncode

    def send(self, number: int) -> None:
        self.process.send_signal(number)


def clients(folder: Path, times: int, draw: random.Random) -> int:
    """Clients of the server that are killed."""
    from test_ndif_server import write_recipe

    out, bad = folder / "run.zarr", 0
    with served(folder) as lab:
        both = ["--neurons", "1:0-3,2:0-11", "--activations"]
        whole = ["--neurons", "all", "-p", "seconds=0.3"]
        for recipe, more in (("entropy_neurons", both), (write_recipe(folder), whole)):
            bad += killed(
                lambda recipe=recipe, more=more: Client(lab, out, recipe, *more), out,
                times // 2, draw,
            )  # fmt: skip
    return bad


def parts(folder: Path, times: int, draw: random.Random) -> int:
    """Each part of the server, in each state of a job."""
    from test_ndif_server import effect_jobs, records, wait_for, write_recipe

    out, bad, recipe = folder / "run.zarr", 0, write_recipe(folder)
    # Polled seldom, so that a job is finished for a while before it is collected.
    options = ["-p", "seconds=3", "-P", "retries=12", "-P", "poll=2"]
    with served(folder) as lab:
        begun = time.monotonic()
        command = Client(lab, out, recipe, *options)
        assert command.wait() == 0, command.said
        took, whole = time.monotonic() - begun, lasting(digest(out))
        print(f"undisturbed: {took:.1f} s", flush=True)
        more = []

        def at(state: str) -> bool:
            jobs = effect_jobs(out)
            states = [lab.state(job) for job in jobs[:2]]
            if state == "finished":  # and not collected
                taken = {r["job"] for r in records(out) if r["event"] == "collected"}
                return any(s == "COMPLETED" and j not in taken for s, j in zip(states, jobs))
            wanted = {"queued": ("QUEUED", "APPROVED", "RECEIVED"), "running": ("RUNNING",)}[state]
            return any(each in wanted for each in states)

        for part in ("dispatcher", "actor", "api", "redis"):
            for state in STATES:
                shutil.rmtree(out)
                (folder / "run.zarr.jobs.jsonl").unlink()
                begun = time.monotonic()
                command = Client(lab, out, recipe, *options)
                wait_for(lambda state=state: at(state))
                if part == "actor":
                    for actor in lab.actors():
                        actor.kill()
                else:
                    os.kill(lab.parts()[part], signal.SIGKILL)
                status = command.wait(took + 2 * PATIENCE)
                late = time.monotonic() - begun - took
                changed = differing(whole, lasting(digest(out))) if status == 0 else [command.said]
                more.append(late)
                if status or changed or late > PATIENCE:
                    bad += 1
                print(
                    f"{part} killed, job {state}: exit {status}, {late:+.0f} s, "
                    f"{'the same bytes' if not changed else changed[:3]}", flush=True,
                )  # fmt: skip
                wait_for(lab.healthy)
        print(f"median {statistics.median(more):+.0f} s, at most {max(more):+.0f} s")
    return bad


TRIALS = {"damage": damage, "kills": kills, "server": clients, "parts": parts, "writers": writers}

if __name__ == "__main__":
    main()
