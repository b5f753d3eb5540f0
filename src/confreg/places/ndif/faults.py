"""What can go wrong on an NDIF server, sorted by what a client can do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from confreg.errors import ConfregError


class Transient(ConfregError):
    """The same request may well succeed a moment later."""


class TooLarge(ConfregError):
    """The server cannot do, or return, so much at once; half of it may work."""


class DeadlineExceeded(ConfregError):
    """A job did not end within the client's own deadline. It may still end on the server."""


class Interrupted(ConfregError):
    """The run was told to stop while a job was awaited."""


class BlockFailed(ConfregError):
    """The recipe's own block raised an exception on the server.

    Attributes
    ----------
    traceback : str
        The server's.
    """

    def __init__(self, message: str, traceback: str):
        super().__init__(message)
        self.traceback = traceback
        self.add_note(traceback)


# What NDIF 0.1 answers for a job that it did not run to its end for reasons of its own.
_TRANSIENT = (
    "error submitting request to model deployment",
    "replica was evicted",
    "cancelled or preempted by the server",
    "critical server error",
    "service temporarily unavailable",
    "compute backend is reconnecting",
    "parent cannot be on a different thread",
    "timed out waiting for the runner socket",
    "runner process exited",
    "endpointconnectionerror",
    "connectionclosederror",
    "brokenpipeerror",
    "error starting model",
    "actordiederror",
    "actorunavailableerror",
    "could not reach",
    "checkpointunreachable",
)
_TOO_LARGE = (
    "exceeded the execution timeout",
    "outofmemoryerror",
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "entitytoolarge",
)
_DEPLOY = ("could not deploy this model", "cant_accommodate", "error provisioning")
_MISMATCH = ("request payload could not be read",)
_MISSING = re.compile("has no module at '([^']*)'")


def job_failure(description: str, meta: Mapping[str, Any] | None, model: str) -> ConfregError:
    """The exception for a job that ended in ERROR.

    Parameters
    ----------
    description : str
        What the server says: a sentence of its own, or the block's traceback.
    meta : mapping or None
        The server's report on the job.
    model : str
        For the message.
    """
    text = description.lower()
    last = last_line(description)
    if (meta and "alloc_shortfall_by_gpu" in meta) or _has(text, _TOO_LARGE):
        return TooLarge(f"The server could not do so much at once: {last}")
    if _has(text, _DEPLOY):
        return ConfregError(
            f"The server cannot deploy {model}: {last} Check the model's id with "
            "`confreg doctor`, or name one of the models that the server already runs."
        )
    if missing := _MISSING.search(description):
        return ConfregError(
            f"The server's {model} has no module {missing[1]!r}, which the request names: its "
            "transformers builds the model otherwise than yours. Install the server's here "
            "(`confreg doctor` names it)."
        )
    if _has(text, _MISMATCH):
        return ConfregError(
            f"The server could not read the request: {last} `confreg doctor` compares the "
            "versions of nnsight, transformers, torch and Python on both sides."
        )
    if _has(text, _TRANSIENT):
        return Transient(f"The server did not finish the job: {last}")
    return BlockFailed(
        f"The recipe's trace failed on the server: {last} "
        "(the traceback is in the journal beside the store)",
        description,
    )


def answer_failure(status: int, detail: str, host: str) -> ConfregError:
    """The exception for an HTTP answer that is an error.

    Parameters
    ----------
    status : int
    detail : str
        What the server says.
    host : str
        For the message.
    """
    if status in (401, 403) or (status == 400 and "api key" in detail.lower()):
        return ConfregError(
            f"{host} does not accept the NDIF key ({status}). Set NDIF_API_KEY, or store a key "
            "with `nnsight login`; the public service gives keys at https://login.ndif.us."
        )
    if status == 400 and "version" in detail.lower():
        return ConfregError(f"{host} does not serve this version of nnsight or Python: {detail}")
    if status == 413:
        return TooLarge(f"{host} does not take a request of this size ({status}).")
    if status in (408, 429) or status >= 500:
        return Transient(f"{host} answered {status}: {detail}")
    return ConfregError(f"{host} refused the request ({status}): {detail}")


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, ``Type: message``."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return (lines or ["it gave no reason."])[-1][:400]


def _has(text: str, marks: tuple[str, ...]) -> bool:
    return any(mark in text for mark in marks)
