"""One writer a store: a lock beside it, which the system lets go of when its process ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confreg.errors import ConfregError
from confreg.sweep.store import disk_errors


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the only one who writes a store.

    Raises
    ------
    ConfregError
        Another run is writing it; the sentence says which.
    """
    from filelock import FileLock, Timeout

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.lock")
    owner = path.with_name(f".{path.name}.owner")
    lock = FileLock(file, timeout=0)
    try:
        with disk_errors(path):
            lock.acquire()
    except Timeout:
        who = owner.read_text() if owner.is_file() else "host and process not known"
        raise ConfregError(
            f"Another run ({who}) is writing the store {str(path)!r}. Wait for it, or write to "
            "another --out."
        ) from None
    try:
        owner.write_text(f"host {socket.gethostname()}, process {os.getpid()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
