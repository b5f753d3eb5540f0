"""Run a command under a limit of memory that the operating system enforces."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from confreg.errors import ConfregError

CGROUPS = Path("/sys/fs/cgroup")


@dataclass
class Usage:
    """What a limited command used: bytes.

    ``peak`` is the group's, page cache included, which the system gives back when it must;
    ``anonymous`` is the largest sample of memory that it could not give back.
    """

    returncode: int = 0
    peak: int = 0
    anonymous: int = 0


def run_limited(command: list[str], limit: int) -> Usage:
    """Run ``command`` where it and its children may hold ``limit`` bytes, without swap.

    The kernel's memory controller (cgroup version 2 or 1, as root) or systemd's user scope
    kills it beyond that.

    Raises
    ------
    ConfregError
        This system offers neither.
    """
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(_group(limit))
        if group is None:
            return _run_scope(command, limit)
        process = subprocess.Popen(_joining(command, group))
        usage = Usage()
        try:
            while process.poll() is None:
                usage.anonymous = max(usage.anonymous, _anonymous(group))
                time.sleep(0.2)
        finally:  # an interrupted benchmark leaves neither the process nor the group behind
            process.kill()
            process.wait()
        usage.returncode = process.returncode
        usage.peak = _first_number(group, "memory.peak", "memory.max_usage_in_bytes")
        return usage


def _joining(command: list[str], group: Path) -> list[str]:
    # The shell joins the group and becomes the command: nothing is allocated outside it.
    return ["/bin/sh", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "sh", *command]


@contextlib.contextmanager
def _group(limit: int) -> Iterator[Path | None]:
    """Make a group of its own with a limit; None where that is not allowed."""
    version2 = (CGROUPS / "cgroup.controllers").is_file()
    root = CGROUPS if version2 else CGROUPS / "memory"
    group = root / f"confreg-benchmark-{os.getpid()}"
    limits = (
        {"memory.max": limit, "memory.swap.max": 0}
        if version2
        else {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}
    )
    try:
        group.mkdir()
        for name, value in limits.items():
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
                (group / name).write_text(str(value))
        enforced = _first_number(group, "memory.max", "memory.limit_in_bytes")
    except OSError:
        enforced = 0
    if not 0 < enforced <= limit:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def _run_scope(command: list[str], limit: int) -> Usage:
    scope = ["systemd-run", "--user", "--scope", "--quiet", f"--property=MemoryMax={limit}"]
    scope += ["--property=MemorySwapMax=0", "--"]
    if (
        shutil.which("systemd-run") is None
        or subprocess.run([*scope, "true"], capture_output=True, check=False).returncode
    ):
        raise ConfregError(
            "This system enforces no limit of memory for us: neither a memory cgroup (run as "
            "root) nor `systemd-run --user --scope` works. Use --no-limit to run without one."
        )
    return Usage(subprocess.run([*scope, *command], check=False).returncode)


def _first_number(group: Path, *names: str) -> int:
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            return int((group / name).read_text())
    return 0


def _anonymous(group: Path) -> int:
    try:
        rows = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get("anon", rows.get("total_rss", 0)))
