"""Ports and processes: what a supervisor needs to start and to end everything."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
from collections.abc import Iterable

import psutil

_PR_SET_CHILD_SUBREAPER = 36


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends (Linux).

    Ray and NDIF leave processes behind that detach from those that started them. They go on
    eating the queue of the next server unless someone still knows them.
    """
    if sys.platform != "linux":
        raise RuntimeError("adopt_orphans needs Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(pid: int) -> list[psutil.Process]:
    """Every process below ``pid``, leaves last."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end_descendants(pid: int, grace: float = 6.0) -> list[psutil.Process]:
    """End every process below ``pid``, politely and then not; return what would not end."""
    for polite in (True, False, False):
        left = descendants(pid)
        if not left:
            return []
        _signal(left, polite)
        psutil.wait_procs(left, timeout=grace)
    return descendants(pid)


def _signal(processes: Iterable[psutil.Process], polite: bool) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate() if polite else process.kill()


def same(pid: int | None, started: float | None) -> bool:
    """Whether ``pid`` is alive and is the process that started at ``started``."""
    if pid is None or started is None:
        return False
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and (
            process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
