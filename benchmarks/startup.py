"""How long ``confreg --help`` and ``import confreg`` take, against a bare interpreter.

python -m benchmarks.startup [--runs 10]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import confreg": ["-c", "import confreg"],
    "confreg --help": ["-m", "confreg.cli", "--help"],
    "confreg run --help": ["-m", "confreg.cli", "run", "--help"],
}


def once(arguments: list[str]) -> float:
    """Seconds of one process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):  # the first warms the disk
        for name, arguments in COMMANDS.items():
            times[name].append(once(arguments))
    bare = statistics.median(times["python -c pass"][1:])
    print(f"{'':20}{'median':>9}{'min':>9}{'max':>9}   {'× bare python':>13}")
    for name, all_seconds in times.items():
        seconds = all_seconds[1:]
        median = statistics.median(seconds)
        print(
            f"{name:20}{median:8.3f}s{min(seconds):8.3f}s{max(seconds):8.3f}s{median / bare:16.1f}"
        )


if __name__ == "__main__":
    main()
