"""Running a recipe's traces on an NDIF server.

A recipe writes ``with model.trace(inputs):`` as always. The model that it is given for a
remote run is the same, except that its traces have a `JobBackend`: the block is serialised,
submitted, written down in the journal, awaited with a deadline of the client's own, and what
it saved appears in the recipe's frame as if it had run here.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel

from confreg.errors import ConfregError
from confreg.execution.journal import Job, Journal
from confreg.execution.ndif_faults import (
    BlockFailed,
    DeadlineExceeded,
    Interrupted,
    Transient,
    job_failure,
)
from confreg.execution.ndif_http import Deadline, Server, Subscription, is_loopback, too_large
from confreg.execution.profiles import NdifProfile

if TYPE_CHECKING:
    from nnsight.tracing.tracer import Tracer

    from confreg.models import Model

# A job of which the server has said nothing for so long was lost before it was queued.
LOST_AFTER = 60.0

# Parts of confreg that a block may call: shipped with the request, as source.
SHIPPED = ("confreg.effects",)


def model_key(repository: str, revision: str | None = None) -> str:
    """What NDIF calls a model that generates text.

    Parameters
    ----------
    repository : str
        Hub id, or a folder that the server sees under the same path.
    revision : str, optional
    """
    identity = {"repo_id": repository, "revision": revision, "task": "text-generation"}
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps(identity)}"


class _Envelope(RequestModel):
    """NDIF's envelope, with the field by which a client asks for the sandbox."""

    trusted: bool | None = None

    def metadata(self) -> str:
        return self.model_dump_json(exclude_none=True)


class Client:
    """Submits the traces of one model to one server.

    Parameters
    ----------
    profile : NdifProfile
    model : Model
        Loaded without weights.
    journal : Path
        File beside the store.
    report : callable, optional
        Called with one line for whatever a user may want to know while jobs run.

    Raises
    ------
    ConfregError
        The profile does not trust its host, or the model is a folder of this machine and the
        server is another machine.
    """

    def __init__(
        self,
        profile: NdifProfile,
        model: Model,
        journal: Path,
        report: Callable[[str], None] | None = None,
    ):
        import nnsight

        key = api_key()
        self.profile, self.model = profile, model
        self.server = Server(profile, key)
        self.key = key
        self.journal = Journal(journal)
        self.report = report or (lambda line: None)
        self.identity = identify(model, profile)
        self.environment = model.nn._remoteable_get_env()
        self.stopping = threading.Event()
        # Serialising touches the model's modules, which all threads share.
        self.serialising = threading.Lock()
        for module in SHIPPED:
            nnsight.register(module)

    def __enter__(self) -> Client:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.server.close()

    def unit(self, key: str) -> Model:
        """The model whose traces are jobs of one unit of work.

        Safe to be called, and its result to be traced, in several threads at once.

        Parameters
        ----------
        key : str
            Names the unit in the journal. The same key must mean the same work.
        """
        remote = copy.copy(self.model)
        counter = iter(range(1 << 30))

        def trace(*inputs: Any, **keywords: Any) -> Any:
            backend = JobBackend(self, f"{key}/{next(counter)}")
            return self.model.trace(*inputs, backend=backend, **keywords)

        remote.trace = trace
        return remote

    def stored(self, key: str) -> None:
        """Say that a unit's result is in the store."""
        for each in self.journal.keys(f"{key}/"):
            self.journal.stored(each)

    def stop(self) -> None:
        """Stop waiting, in every thread. Jobs that were submitted stay in the journal."""
        self.stopping.set()

    def pause(self, seconds: float) -> None:
        """Wait, unless told to stop.

        Raises
        ------
        Interrupted
        """
        if self.stopping.wait(seconds):
            raise Interrupted(
                "Interrupted. Jobs that were submitted go on at the server; the same command "
                "collects them."
            )
