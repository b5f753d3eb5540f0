"""What was asked of a server, written down before the answer is awaited.

One JSON object a line, appended and synced. A client that was killed reads here which jobs it
had submitted, and collects them by id instead of paying for them twice.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confreg.sweep.budget import Cost


@dataclass(frozen=True)
class Job:
    """A job that was submitted and whose result is not in the store yet.

    Attributes
    ----------
    id : str
        The server's.
    submitted : float
        When, in seconds since the epoch.
    """

    id: str
    submitted: float


def journal_path(store: Path) -> Path:
    """Where the journal of a store's jobs is: beside it."""
    return store.with_name(f"{store.name}.jobs.jsonl")


class Journal:
    """Jobs by unit of work. Safe for several threads; for one process at a time.

    Several clients may share one, each with keys of its own.

    Parameters
    ----------
    path : Path
        Created when first written to.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._open: dict[str, list[Job]] = {}
        self._up: dict[str, tuple[int, float]] = {}
        self._costs: dict[str, Cost] = {}
        self._torn = False
        for record in self._read():
            with contextlib.suppress(KeyError, TypeError):  # a line that is not one of ours
                self._apply(record)

    def jobs(self, key: str) -> list[Job]:
        """Jobs that may still answer for a unit and can be asked for by id, oldest first."""
        with self._lock:
            return list(self._open.get(key, ()))

    def keys(self, prefix: str) -> list[str]:
        """Units whose jobs may still answer and whose keys begin with ``prefix``."""
        with self._lock:
            return [key for key in self._open if key.startswith(prefix)]

    def submitted(self, key: str, job: str, bytes_up: int, polled: bool = True) -> Job:
        """Write down that a job was submitted for a unit, the first or a further one.

        Parameters
        ----------
        key, job : str
            The unit's key, and the server's id.
        bytes_up : int
            Size of the request.
        polled : bool
            Whether its result can be fetched by id; else it comes, or does not, on a websocket.
        """
        event = {"event": "submitted", "key": key, "job": job}
        record = self._write({**event, "bytes_up": bytes_up, "polled": polled})
        return Job(job, record["at"])

    def doubted(self, key: str, job: str, reason: str) -> None:
        """Write down that a job seems lost. It may still answer."""
        self._write({"event": "doubted", "key": key, "job": job, "reason": reason})

    def collected(self, key: str, job: str, bytes_down: int, seconds: float | None) -> None:
        """Write down that a job's result arrived, and what it cost; others are not awaited."""
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
        self._write({"event": "failed", "key": key, "job": job, "reason": reason[-4000:]})

    def costs(self) -> list[Cost]:
        """What every collected job has cost, in the order in which they were collected."""
        with self._lock:
            return list(self._costs.values())

    def _write(self, record: dict[str, Any]) -> dict[str, Any]:
        record = {"at": round(time.time(), 3), **record}
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = b"\n" * self._torn + json.dumps(record).encode() + b"\n"
            self._torn = True
            with self.path.open("ab", buffering=0) as file:
                # At once, so that two journals of one file mix no lines.
                self._torn = file.write(line) < len(line)
                os.fsync(file.fileno())
            self._apply(record)
        return record

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        records = []
        text = self.path.read_bytes()
        # A process that was killed while writing leaves half a line: the next one begins anew.
        self._torn = bool(text) and not text.endswith(b"\n")
        for line in text.splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:  # half a line
                continue
        return records

    def _apply(self, record: dict[str, Any]) -> None:
        key, event, job = record["key"], record["event"], record.get("job", "")
        if event == "submitted":
            self._up[job] = (record["bytes_up"], record["at"])
            if record["polled"]:
                self._open.setdefault(key, []).append(Job(job, record["at"]))
        elif event == "collected":
            self._keep(key, lambda each: each.id == job)
            if job in self._costs:
                return
            size, at = self._up.get(job, (0, record["at"]))
            seconds = record["server_seconds"]
            self._costs[job] = Cost(
                id=job,
                key=key,
                bytes_up=size,
                bytes_down=record["bytes_down"],
                seconds=math.nan if seconds is None else seconds,
                waited=record["at"] - at,
            )
        elif event == "failed":
            self._keep(key, lambda each: each.id != job)
        elif event == "stored":
            self._open.pop(key, None)

    def _keep(self, key: str, wanted: Callable[[Job], bool]) -> None:
        left = [job for job in self._open.pop(key, ()) if wanted(job)]
        if left:
            self._open[key] = left
