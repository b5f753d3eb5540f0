"""Running a recipe's traces on an NDIF server.

A recipe writes ``with model.trace(inputs):`` as always. The model that it is given for a
remote run is the same, except that its traces have a `JobBackend`: the block is serialised,
submitted, written down in the journal, awaited with a deadline of the client's own, and what
it saved appears in the recipe's frame as if it had run here.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.schema.request import RequestModel

from confreg.errors import ConfregError
from confreg.places.ndif import watch
from confreg.places.ndif.faults import (
    DeadlineExceeded,
    Interrupted,
    TooLarge,
    Transient,
    job_failure,
)
from confreg.places.ndif.http import Deadline, Server, Subscription, too_large
from confreg.places.ndif.identity import api_key, identify
from confreg.places.ndif.journal import Job, Journal
from confreg.places.ndif.travel import load_result, register_beside, register_shipped
from confreg.places.profiles import NdifProfile

if TYPE_CHECKING:
    from nnsight.tracing.tracer import Tracer

    from confreg.models import Model


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
    journal : Journal or Path
        Of the store's jobs, or the file that keeps it. Clients of several models share one
        journal, and may use the same keys.
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
        journal: Journal | Path,
        report: Callable[[str], None] | None = None,
    ):
        key = api_key()
        self.profile, self.model = profile, model
        self.server = Server(profile, key)
        self.key = key
        self.journal = journal if isinstance(journal, Journal) else Journal(journal)
        self.report = report or (lambda line: None)
        self.identity = identify(model, profile)
        # Tells this model's jobs from another's under one key of one journal.
        self.mark = hashlib.sha256(self.identity.encode()).hexdigest()[:8]
        self.watch = watch.Watch()
        self.environment = model.nn._remoteable_get_env()
        self.stopping = threading.Event()
        # Serialising touches the model's modules, which all threads share.
        self.serialising = threading.Lock()
        register_shipped()

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
            Names the unit in the journal. The same key must mean the same work, and each unit
            asks for its model once: its traces are told apart by their order.
        """
        remote = copy.copy(self.model)
        remote.learnt = {}  # by traces of the unit's own
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
        if jobs := self.journal.jobs(key):
            return self._collect_known(key, jobs, serialise)
        if self.profile.blocking:
            return self._subscribe(key, serialise())
        deadline = Deadline(self.profile.deadline)
        job = self._submit(key, serialise(), deadline)
        return self._collect(key, [job], serialise, deadline)

    def _collect_known(
        self, key: str, jobs: list[Job], serialise: Callable[[], bytes]
    ) -> dict[str, Any]:
        """Collect jobs of an earlier attempt or run; give them up when their time is over."""
        for job in jobs:
            self.watch.begin(job.id)
        left = jobs[-1].submitted + self.profile.deadline - time.time()
        # The clock may have been set meanwhile.
        deadline = Deadline(min(max(left, watch.LOST_AFTER / 4), self.profile.deadline))
        try:
            return self._collect(key, jobs, serialise, deadline)
        except DeadlineExceeded as error:
            for job in self.journal.jobs(key):
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
        self.watch.begin(answer["id"])
        return self.journal.submitted(key, answer["id"], len(blob), polled=not session)

    def _collect(
        self, key: str, jobs: list[Job], serialise: Callable[[], bytes], deadline: Deadline
    ) -> dict[str, Any]:
        """The first result of jobs that do the same work; one more is submitted when in doubt.

        Parameters
        ----------
        key : str
        jobs : list of Job
            Oldest first; changed.
        serialise : callable
            Makes the request's body, should it be needed again.
        deadline : Deadline
            Of all of them together.
        """
        heard, status, wait = time.monotonic(), "not known to the server", self.profile.poll
        copies = 0
        while deadline.left():
            for job in list(jobs):
                try:
                    answer = self.server.response(job.id, deadline)
                except Transient as error:
                    # No news of the job: it may be doing well behind a server that is away.
                    status = str(error)
                    self.watch.unheard(job.id)
                    if time.monotonic() - heard > 2 * watch.LOST_AFTER:
                        raise
                    continue
                heard = time.monotonic()
                self.watch.heard(job.id, answer)
                if answer is not None:
                    status = f"{answer['status']}"
                    if (result := self._result(key, jobs, job, answer, deadline)) is not None:
                        return result
            reason = self.watch.doubt(jobs[-1].id, copies)
            if reason and copies < self.profile.retries:
                self._say_lost(key, jobs[-1], reason)
                jobs.append(self._submit(key, serialise(), deadline))
                copies, wait = copies + 1, self.profile.poll
            self.pause(min(wait, deadline.left()))
            wait = min(wait * 1.2, 10 * self.profile.poll)
        raise self._late(jobs[-1], status)

    def _result(
        self, key: str, jobs: list[Job], job: Job, answer: Mapping[str, Any], deadline: Deadline
    ) -> dict[str, Any] | None:
        """A job's result, if it has ended; one that failed for no fault of its own is left out.

        Raises
        ------
        ConfregError
            It has failed, and so will the others, or there are none.
        """
        try:
            if self._ended(key, job, answer):
                return self._fetch(key, job, answer, deadline)
        except Transient:
            if len(jobs) == 1:
                raise
            jobs.remove(job)
        return None

    def _say_lost(self, key: str, job: Job, reason: str) -> None:
        self.journal.doubted(key, job.id, reason)
        self.report(
            f"{self.server.host} seems to have lost job {job.id} ({reason}). Submitting {key} "
            "again; the first result counts."
        )

    def _subscribe(self, key: str, blob: bytes) -> dict[str, Any]:
        """Submit a job and wait for it on a websocket."""
        deadline = Deadline(self.profile.deadline)
        socket = Subscription(self.server, self.key, deadline)
        try:
            job = self._submit(key, blob, deadline, socket.session)
            status = "RECEIVED"
            while deadline.left():
                self.pause(0)
                message = socket.receive(min(0.5, deadline.left()))
                if message is None:
                    self._give_up_if_lost(key, job)
                    continue
                if isinstance(message, bytes):
                    if len(message) > self.profile.max_result:
                        raise self._refuse(key, job, len(message))
                    message = RemoteBackend.parse(message).model_dump(mode="python")
                status = message["status"]
                self.watch.heard(job.id, message)
                if self._ended(key, job, message):
                    return self._fetch(key, job, message, deadline)
            raise self._late(job, str(status))
        finally:
            socket.close()

    def _give_up_if_lost(self, key: str, job: Job) -> None:
        """Give up a job that reports on a websocket, where its result can come but once.

        Raises
        ------
        Transient
        """
        if reason := self.watch.doubt(job.id, sure=True):
            self.journal.failed(key, job.id, f"lost: {reason}")
            raise Transient(f"{self.server.host} seems to have lost job {job.id} ({reason}).")

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
        self.journal.collected(key, job.id, len(body), _seconds(answer))
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
        key = f"{self.unit}/{self.client.mark}-{self.count}"
        self.count += 1
        result = self.client.run(key, lambda: self._blob(tracer))
        self._push(result, tracer)
        return result

    def _blob(self, tracer: Tracer) -> bytes:
        assert tracer.info is not None
        with self.client.serialising:
            register_beside(tracer.info.frame.f_code.co_filename)
            return self._serialize(tracer)


def _seconds(answer: Mapping[str, Any]) -> float | None:
    """How long a job ran, where the server says something that can be a duration."""
    seconds = (answer.get("meta") or {}).get("runtime")
    if isinstance(seconds, int | float) and 0 <= seconds < math.inf:
        return float(seconds)
    return None
