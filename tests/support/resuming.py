"""Runs from the command line that are killed on the way, and what their stores hold.

Commands run in processes of their own, forked from one that has imported everything: quick enough
to kill many.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    ["confreg.cli.main", "confreg.api", "confreg.report", "confreg.models", "confreg.sweep.run",
     "nnsight", "transformers"]
)  # fmt: skip
SLOWLY = 0.02
"""Seconds that a unit takes at least, so that a kill lands within the run."""


def digest(path: Path) -> dict[str, str]:
    """Every file of a store, by its bytes."""
    files = sorted(f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def damage(file: Path, how: str, where: float) -> None:
    """Remove a file, cut it, or change one bit of it, at a share of its length."""
    content = file.read_bytes()
    at = min(int(where * len(content)), len(content) - 1)
    if how == "removed" or not content:
        file.unlink()
    elif how == "cut":
        file.write_bytes(content[:at])
    else:
        bit = 1 << random.Random(where).randrange(8)
        file.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])


class Command:
    """``confreg`` and its arguments, in a process of its own.

    Parameters
    ----------
    arguments : sequence of str
    folder : Path
        Where it runs; what it says is in ``said.txt`` there.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.folder = folder
        self.process = _PROCESSES.Process(target=_command, args=(list(arguments), str(folder)))
        self.process.start()

    def wait(self, seconds: float | None = None) -> int | None:
        """Exit status, or None where it runs still."""
        self.process.join(seconds)
        return self.process.exitcode

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait for something that it does before it ends."""
        while not happened():
            assert self.wait(0.01) is None, self.said

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def said(self) -> str:
        """What it wrote so far."""
        return (self.folder / "said.txt").read_text()


def _command(arguments: list[str], folder: str) -> None:
    from confreg.cli.main import main
    from confreg.sweep.store import Store

    write = Store.write_unit

    def slowly(self, *unit):
        time.sleep(SLOWLY)
        write(self, *unit)

    Store.write_unit = slowly
    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    try:
        main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run(arguments: Sequence[str], folder: Path) -> None:
    """Run a command to its end, which must be a good one."""
    command = Command(arguments, folder)
    assert command.wait() == 0, command.said


def survives(arguments: Sequence[str], folder: Path, out: Path, kills: int = 1, seed: int = 0):
    """Kill a command at random moments of its writing ``out``; what it ends with is the same.

    The command line is part of the store: the same path, one run after the other.
    """
    command = Command(arguments, folder)
    command.wait_for(lambda: out.exists())
    began = time.monotonic()
    assert command.wait() == 0, command.said
    took = time.monotonic() - began
    whole = digest(out)
    out.rename(out.with_name("whole.zarr"))
    draw, killed = random.Random(seed), 0
    while killed < kills:
        command = Command(arguments, folder)
        command.wait_for(lambda: out.exists())
        if command.wait(took * draw.uniform(0, 1)) is None:
            command.send(signal.SIGKILL)
            command.wait()
            killed += 1
        else:  # a faster moment of the machine: it must be killed in its course
            assert command.wait() == 0, command.said
            shutil.rmtree(out)
    run(arguments, folder)
    after = digest(out)
    changed = [name for name in {*whole, *after} if whole.get(name) != after.get(name)]
    assert not changed, f"other bytes after a kill: {sorted(changed)}"


def stops(arguments: Sequence[str], folder: Path, out: Path) -> None:
    """Press Ctrl-C once the first unit is written; the same command goes on from there."""
    command = Command(arguments, folder)
    command.wait_for(lambda: any((out / "work").glob("*/done/c")))
    command.send(signal.SIGINT)
    assert command.wait(60) == 130, command.said
    assert "the same command goes on from there" in command.said
    assert "Traceback" not in command.said
    run(arguments, folder)
