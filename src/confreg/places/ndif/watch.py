"""Whether a job was lost, told from when it and others last moved.

NDIF answers for a job with its latest status, and goes on to answer so when the process that held
the job has died: a lost job looks like one that waits. Nothing else is told of the queue. What a
client has is its own clock and its own other jobs: requests for one model are taken up in the
order in which they came, so a job that has not moved since before another one was submitted, and
which that other one has overtaken, is held by nobody.

How long a job may stay as it is before it is doubted, in units of `LOST_AFTER`:

=====================  ==============  =========================================
last heard             overtaken       nothing is known of others
=====================  ==============  =========================================
nothing, or received   1               1
queued                 1/4             3, or thrice the longest wait so far
being deployed         1/4             10, or thrice the longest wait so far
dispatched             1               3, or thrice the longest time so far
running                1, or thrice    10, or thrice the longest time so far
                       the longest
                       time so far
=====================  ==============  =========================================

For a job that was not overtaken the time counts from when it, or one before it, last moved.

A doubted job may still answer. Whoever doubts it submits the same work again and takes the first
result; each further job of the same work is given twice as long.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOST_AFTER = 60.0
"""Seconds without a sign of life after which a job is doubted, where nothing else is known."""

_UNKNOWN, _QUEUED, _DISPATCHED, _RUNNING, _ENDED = range(5)
_STAGES = {
    "": _UNKNOWN,
    "RECEIVED": _UNKNOWN,
    "QUEUED": _QUEUED,
    "PROVISIONING": _QUEUED,
    "DEPLOYING": _QUEUED,
    "DISPATCHED": _DISPATCHED,
    "RUNNING": _RUNNING,
    "COMPLETED": _ENDED,
    "ERROR": _ENDED,
}
# Patience in units of LOST_AFTER: when overtaken, and when nothing is known of others.
_PATIENCE = {_UNKNOWN: (1, 1), _QUEUED: (0.25, 3), _DISPATCHED: (1, 3), _RUNNING: (1, 10)}
_DEPLOYING = 10


@dataclass
class _Sighting:
    """What was last heard of a job, by this client's clock."""

    born: float
    stage: int = _UNKNOWN
    said: tuple[str, str] = ("", "")
    moved: float = field(init=False)
    advanced: float = field(init=False)

    def __post_init__(self) -> None:
        self.moved = self.advanced = self.born


class Watch:
    """What is known of the jobs of one model. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, _Sighting] = {}
        self._ended: deque[_Sighting] = deque(maxlen=64)
        self._longest: dict[int, float] = {}

    def begin(self, job: str) -> None:
        """Watch a job from now on; one that is watched already is left as it is."""
        with self._lock:
            self._jobs.setdefault(job, _Sighting(time.monotonic()))

    def heard(self, job: str, answer: Mapping[str, Any] | None) -> None:
        """Take in what the server says of a job; None where it does not know it (any more)."""
        answer = answer or {"status": ""}
        said = str(answer["status"]), str(answer.get("description") or "")
        with self._lock:
            seen = self._jobs.get(job)
            if seen is None or said == seen.said:
                return
            now, stage = time.monotonic(), _STAGES.get(said[0], seen.stage)
            if stage != seen.stage:
                took = now - seen.advanced
                self._longest[seen.stage] = max(took, self._longest.get(seen.stage, 0.0))
                seen.stage, seen.advanced = stage, now
            seen.said, seen.moved = said, now
            if stage == _ENDED:
                self._ended.append(self._jobs.pop(job))

    def unheard(self, job: str) -> None:
        """Take in that the server did not answer: its silence is no news of the job."""
        with self._lock:
            if job in self._jobs:
                self._jobs[job].moved = time.monotonic()

    def doubt(self, job: str, copies: int = 0, *, sure: bool = False) -> str | None:
        """Why a job seems lost, as the end of a sentence, or None while it does not.

        To be asked right after `heard`, so that what is known of the job is not older than what
        is known of others.

        Parameters
        ----------
        job : str
        copies : int
            How many times its work was submitted again already.
        sure : bool
            Whether to doubt only what cannot well be otherwise: a job that the server never
            knew, or one that waits and was overtaken.
        """
        with self._lock:
            seen = self._jobs.get(job)
            if seen is None:
                return None
            now, overtaken = time.monotonic(), self._overtaken(seen)
            if sure and seen.stage != _UNKNOWN and (not overtaken or seen.stage == _RUNNING):
                return None
            # It waits for those that came before it as long as they move.
            since = seen.moved if overtaken else max(seen.moved, self._ahead_moved(seen))
            if now - since <= self._patience(seen, overtaken) * 2**copies:
                return None
        still = now - seen.moved
        state = seen.said[0] or "unknown to it"
        if overtaken:
            return f"{state} for {still:.0f} s, while a job that was submitted later went ahead"
        return f"{state} for {still:.0f} s"

    def _overtaken(self, seen: _Sighting) -> bool:
        """Whether a job that was submitted after this one last moved has gone ahead of it."""
        before = time.monotonic() - LOST_AFTER / 4
        return any(
            other.born > seen.moved and other.stage > max(seen.stage, _QUEUED)
            and other.advanced < before
            for other in (*self._jobs.values(), *self._ended)
        )  # fmt: skip

    def _ahead_moved(self, seen: _Sighting) -> float:
        """When a job that was submitted before this one last moved."""
        every = (*self._jobs.values(), *self._ended)
        return max((other.moved for other in every if other.born < seen.born), default=0.0)

    def _patience(self, seen: _Sighting, overtaken: bool) -> float:
        ahead, alone = _PATIENCE[seen.stage]
        if seen.said[0] in ("PROVISIONING", "DEPLOYING"):
            alone = _DEPLOYING
        longest = 3 * self._longest.get(seen.stage, 0.0)
        if overtaken:
            return max(ahead * LOST_AFTER, longest if seen.stage == _RUNNING else 0.0)
        return max(alone * LOST_AFTER, 0.0 if seen.stage == _UNKNOWN else longest)
