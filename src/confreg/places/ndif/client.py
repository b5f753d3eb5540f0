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
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel

from confreg.errors import ConfregError
from confreg.places.ndif.faults import (
    DeadlineExceeded,
    Interrupted,
    TooLarge,
    Transient,
    job_failure,
)
from confreg.places.ndif.http import Deadline, Server, Subscription, is_loopback, too_large
from confreg.places.ndif.journal import Job, Journal
from confreg.places.profiles import NdifProfile

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
        """Let go of jobs, and close the connections."""
        self.stop()
        self.server.close()

    def unit(self, key: str) -> Model:
        """The model whose traces are jobs of one unit of work.

        Its result may be traced in another thread, as may those of other units meanwhile.

        Parameters
        ----------
        key : str
            Names the unit in the journal. The same key must mean the same work.
        """
        remote = copy.copy(self.model)
        # As in `Model`: a partial, because nnsight reads the frame of whoever calls it.
        remote.trace = functools.partial(self.model.trace, backend=JobBackend(self, key))
        return remote

    def stored(self, key: str) -> None:
        """Say that a unit's result is in the store."""
        for each in self.journal.keys(f"{key}/"):
            self.journal.stored(each)

    def dtype(self) -> str | None:
        """In which dtype the server runs the model, where it runs it and says so."""
        for deployment in self.server.get("/status", seconds=70)["deployments"].values():
            if deployment.get("model_key") == self.identity:
                return deployment.get("dtype")
        return None

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

    def run(self, key: str, serialise: Callable[[], bytes]) -> dict[str, Any]:
        """What a block saved: collected where its job is known already, else submitted.

        Parameters
        ----------
        key : str
            The unit's in the journal.
        serialise : callable
            Makes the request's body; called when there is something to submit.

        Raises
        ------
        TooLarge
            Half of the unit may work.
        ConfregError
            What else went wrong, when trying again did not help.
        """
        import tenacity

        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Transient),
            wait=tenacity.wait_exponential_jitter(initial=1, max=30),
            stop=tenacity.stop_after_attempt(self.profile.retries + 1),
            sleep=self.pause,
            before_sleep=lambda state: self._report_retry(key, state),
            reraise=True,
        )
        try:
            return attempts(self._once, key, serialise)
        except Transient as error:
            raise ConfregError(
                f"{error} Tried {self.profile.retries + 1} times. What is finished is in the "
                "store; the same command goes on from there."
            ) from error

    def _once(self, key: str, serialise: Callable[[], bytes]) -> dict[str, Any]:
        job = self.journal.job(key)
        if job is not None and job.polled:
            return self._collect_known(key, job)
        if self.profile.blocking:
            return self._subscribe(key, serialise())
        deadline = Deadline(self.profile.deadline)
        job = self._submit(key, serialise(), deadline)
        return self._poll(key, job, deadline)

    def _collect_known(self, key: str, job: Job) -> dict[str, Any]:
        """Collect a job of an earlier attempt or run; give it up when its time is over."""
        left = job.submitted + self.profile.deadline - time.time()
        deadline = Deadline(max(left, LOST_AFTER / 4))
        try:
            return self._poll(key, job, deadline)
        except DeadlineExceeded as error:
            self.journal.failed(key, job.id, str(error))
            raise Transient(str(error)) from error

    def _submit(self, key: str, blob: bytes, deadline: Deadline, session: str = "") -> Job:
        envelope = _Envelope(
            model_key=self.identity,
            session_id=session,
            compress=True,
            env=self.environment,
            trusted=False if self.profile.sandbox else None,
        )
        answer = self.server.submit(envelope.metadata(), blob, deadline)
        return self.journal.submitted(key, answer["id"], len(blob), polled=not session)

    def _poll(self, key: str, job: Job, deadline: Deadline) -> dict[str, Any]:
        """Ask for a job's status until it has ended or the deadline is over."""
        heard, status, wait = time.monotonic(), "not known to the server", self.profile.poll
        while deadline.left():
            try:
                answer = self.server.response(job.id, deadline)
            except Transient as error:
                # No news of the job: it may be doing well behind a server that cannot be reached.
                status = str(error)
                if time.monotonic() - heard > 2 * LOST_AFTER:
                    raise
            else:
                if answer is not None:
                    heard, status = time.monotonic(), f"{answer['status']}"
                    if self._ended(key, job, answer):
                        return self._fetch(key, job, answer, deadline)
                elif time.monotonic() - heard > LOST_AFTER:
                    self.journal.failed(key, job.id, "lost")
                    raise Transient(f"{self.server.host} lost job {job.id}.")
            self.pause(min(wait, deadline.left()))
            wait = min(wait * 1.2, 10 * self.profile.poll)
        raise self._late(job, status)

    def _subscribe(self, key: str, blob: bytes) -> dict[str, Any]:
        """Submit a job and wait for it on a websocket."""
        deadline = Deadline(self.profile.deadline)
        socket = Subscription(self.server, self.key, deadline)
        try:
            job = self._submit(key, blob, deadline, socket.session)
            status = "RECEIVED"
            while (message := socket.receive(self.stopping)) is not None:
                if isinstance(message, bytes):
                    if len(message) > self.profile.max_result:
                        raise self._refuse(key, job, len(message))
                    message = RemoteBackend.parse(message).model_dump(mode="python")
                status = message["status"]
                if self._ended(key, job, message):
                    return self._fetch(key, job, message, deadline)
            self.pause(0)
            raise self._late(job, str(status))
        finally:
            socket.close()

    def _ended(self, key: str, job: Job, answer: Mapping[str, Any]) -> bool:
        """Whether a job has its result; raise if it has failed."""
        if answer["status"] == "ERROR":
            failure = job_failure(answer["description"], answer.get("meta"), self.model.name)
            self.journal.failed(key, job.id, answer["description"])
            raise failure
        return answer["status"] == "COMPLETED"

    def _fetch(
        self, key: str, job: Job, answer: Mapping[str, Any], deadline: Deadline
    ) -> dict[str, Any]:
        """A finished job's result."""
        data = answer["data"]
        try:
            body = data if isinstance(data, bytes) else self.server.download(data, deadline)
        except DeadlineExceeded:
            raise self._late(job, "its result is on the way") from None
        except (TooLarge, Transient) as error:
            self.journal.failed(key, job.id, str(error))
            raise
        result = load_result(body)
        self.journal.collected(key, job.id, len(body), (answer.get("meta") or {}).get("runtime"))
        return result

    def _refuse(self, key: str, job: Job, size: int) -> TooLarge:
        error = too_large(size, int(self.profile.max_result))
        self.journal.failed(key, job.id, str(error))
        return error

    def _late(self, job: Job, status: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"Job {job.id} did not end within the deadline of {self.profile.deadline:.0f} s "
            f"(last heard of {self.server.host}: {status}). What is finished is in the store, and "
            "the same command asks for the job again; `-P deadline=SECONDS` waits longer."
        )

    def _report_retry(self, key: str, state: Any) -> None:
        error = state.outcome.exception()
        wait = state.next_action.sleep
        self.report(f"{error} Trying again in {wait:.0f} s ({key}).")


class JobBackend(RemoteBackend):
    """Runs the traces of one unit of work as jobs, each as if it ran here.

    Parameters
    ----------
    client : Client
    unit : str
        Key of the unit in the journal.
    """

    def __init__(self, client: Client, unit: str):
        super().__init__(
            client.identity, host=client.server.base, api_key=client.key, blocking=False
        )
        self.compress = True
        self.verbose = False  # else a `-v` of the command that runs us makes nnsight talk
        self.client, self.unit, self.count = client, unit, 0

    def __call__(self, tracer: Tracer | None = None) -> dict[str, Any]:
        """Run a captured block on the server and put what it saved into the caller's frame."""
        assert tracer is not None
        key = f"{self.unit}/{self.count}"
        self.count += 1
        result = self.client.run(key, lambda: self._blob(tracer))
        self._push(result, tracer)
        return result

    def _blob(self, tracer: Tracer) -> bytes:
        assert tracer.info is not None
        with self.client.serialising:
            register_beside(tracer.info.frame.f_code.co_filename)
            return self._serialize(tracer)


def register_beside(filename: str) -> None:
    """Let modules that lie in a recipe's folder travel with its blocks, as source."""
    import nnsight

    folder = Path(filename).resolve().parent
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        # A package's modules are registered with the package.
        if path and "." not in name and name != "__main__" and _lies_in(Path(path), folder):
            nnsight.register(name)


def _lies_in(path: Path, folder: Path) -> bool:
    own = path.parent if path.name == "__init__.py" else path
    return own.parent.resolve() == folder


def load_result(body: bytes) -> dict[str, Any]:
    """What a block saved, from the bytes that a server returned.

    Tensors, numbers, strings and containers of them are read without running code. Anything
    else is a pickle, which a profile's ``trusted`` has allowed.

    Raises
    ------
    Transient
        The bytes are not a result: they were cut short.
    """
    import pickle

    import torch
    import zstandard

    try:
        data = zstandard.ZstdDecompressor().decompress(body)
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except (zstandard.ZstdError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise Transient(f"A result of {len(body)} bytes cannot be read: {error}") from error


def identify(model: Model, profile: NdifProfile) -> str:
    """Key by which a server knows a model.

    Raises
    ------
    ConfregError
        The model is a folder of this machine, and the server another machine.
    """
    from nnsight.modeling import huggingface

    name = model.nn.repo_id
    if Path(name).is_dir():
        if not is_loopback(urlsplit(profile.host).hostname or ""):
            raise ConfregError(
                f"{model.name} is a folder of this machine, which {profile.host} cannot read. "
                "Name a model on the Hugging Face Hub."
            )
        huggingface._ID_CACHE[name] = name
    try:
        return model.nn.to_model_key()
    except OSError:  # the Hub cannot be reached: the id is taken as it was written
        return model_key(name, model.nn.revision)


def api_key() -> str | None:
    """The NDIF key: NDIF_API_KEY, or what ``nnsight login`` stored. Never from a profile."""
    from nnsight.schema.config import CONFIG

    return CONFIG.API.APIKEY or None
