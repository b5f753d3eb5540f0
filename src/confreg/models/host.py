"""What memory this process may really use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that can still be allocated: the machine's, or less under a cgroup's limit.

    Batch systems and containers limit a job's memory by a cgroup, which the machine's own
    figure does not show. Page cache that the group could give back counts as available.
    """
    import psutil

    return max(0, min([psutil.virtual_memory().available, *_left()]))


def _left() -> Iterator[int]:
    """Yield what each limited group above this process has left."""
    for folder, limit, usage, cache in _groups():
        # A limit on a group holds for all below it: walk up to the root of the hierarchy.
        while folder != CGROUPS and CGROUPS in folder.parents:
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None and most < 2**60:
                yield most - used + _cached(folder / "memory.stat", cache)
            folder = folder.parent


def _groups() -> Iterator[tuple[Path, str, str, tuple[str, ...]]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            cache = ("active_file", "inactive_file")
            yield CGROUPS / path.lstrip("/"), "memory.max", "memory.current", cache
        elif controllers == "memory":
            cache = ("total_active_file", "total_inactive_file")
            folder = CGROUPS / "memory" / path.lstrip("/")
            yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", cache


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _cached(path: Path, names: tuple[str, ...]) -> int:
    try:
        rows = dict(line.split() for line in path.read_text().splitlines())
    except OSError:
        return 0
    return sum(int(rows.get(name, 0)) for name in names)
