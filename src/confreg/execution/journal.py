"""What was asked of a server, written down before the answer is awaited.

One JSON object a line, appended and synced. A client that was killed reads here which jobs it
had submitted, and collects them by id instead of paying for them twice.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A job that was submitted and whose result is not in the store yet.

    Attributes
    ----------
    id : str
        The server's.
    submitted : float
        When, in seconds since the epoch.
    polled : bool
        Whether its result can be fetched by id; else it came, or did not, on a websocket.
    """

    id: str
    submitted: float
    polled: bool


@dataclass(frozen=True)
class Usage:
    """What a run has asked of its server.

    Attributes
    ----------
    jobs : tuple of str
        Ids of the jobs whose results were collected, in order.
    submitted : int
        Jobs submitted, those that failed included.
    bytes_up, bytes_down : int
    server_seconds : float
        Execution time that the server reported.
    wall_seconds : float
        From submission to result, summed over jobs.
    """

    jobs: tuple[str, ...] = ()
    submitted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    server_seconds: float = 0.0
    wall_seconds: float = 0.0


class Journal:
    """Jobs by unit of work. Safe for several threads; for one process at a time.

    Parameters
    ----------
    path : Path
        Created when first written to.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._open: dict[str, Job] = {}
        self._collected: dict[str, str] = {}
        self._submitted = self._up = self._down = 0
        self._server = self._wall = 0.0
        for record in self._read():
            self._apply(record)

    def job(self, key: str) -> Job | None:
        """The job that may still answer for a unit, if there is one."""
        with self._lock:
            return self._open.get(key)

    def keys(self, prefix: str) -> list[str]:
        """Units whose jobs may still answer and whose keys begin with ``prefix``."""
        with self._lock:
            return [key for key in self._open if key.startswith(prefix)]

    def submitted(self, key: str, job: str, bytes_up: int, polled: bool = True) -> Job:
        """Write down that a job was submitted for a unit."""
        event = {"event": "submitted", "key": key, "job": job}
        self._write({**event, "bytes_up": bytes_up, "polled": polled})
        return self._open[key]

    def collected(self, key: str, job: str, bytes_down: int, seconds: float | None) -> None:
        """Write down that a job's result arrived, and what it cost."""
        self._write(
            {
                "event": "collected",
                "key": key,
                "job": job,
                "bytes_down": bytes_down,
                "server_seconds": seconds,
            }
        )

    def stored(self, key: str) -> None:
        """Write down that a unit's result is in the store: its job is not needed again."""
        self._write({"event": "stored", "key": key})

    def failed(self, key: str, job: str, reason: str) -> None:
        """Write down that a job will not give a result."""
        self._write({"event": "failed", "key": key, "job": job, "reason": reason[:500]})

    def usage(self) -> Usage:
        """What all jobs so far have cost."""
        with self._lock:
            return Usage(
                tuple(self._collected),
                self._submitted,
                self._up,
                self._down,
                round(self._server, 3),
                round(self._wall, 3),
            )

    def _write(self, record: dict[str, Any]) -> None:
        record = {"at": round(time.time(), 3), **record}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # A process that was killed while writing leaves half a line: begin a new one.
                if file.tell() and not self._ends_with_newline():
                    file.write(b"\n")
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._apply(record)

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_bytes().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:  # half a line
                continue
        return records

    def _apply(self, record: dict[str, Any]) -> None:
        key, event = record["key"], record["event"]
        if event == "submitted":
            self._open[key] = Job(record["job"], record["at"], record["polled"])
            self._submitted += 1
            self._up += record["bytes_up"]
        elif event == "collected" and record["job"] not in self._collected:
            self._collected[record["job"]] = key
            self._down += record["bytes_down"]
            self._server += record["server_seconds"] or 0.0
            if (job := self._open.get(key)) is not None:
                self._wall += record["at"] - job.submitted
        elif event in ("stored", "failed"):
            self._open.pop(key, None)
