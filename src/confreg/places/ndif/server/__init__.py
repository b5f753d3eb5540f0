"""An NDIF server of one's own: up, down and status.

For a lab without a cluster and for the tests. Everything listens on loopback; one supervisor
owns every process and ends them all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from confreg.errors import ConfregError
from confreg.places.ndif.server import environment, processes, services
from confreg.places.ndif.server.services import Settings

PROFILE = "ndif-localhost"


@dataclass(frozen=True)
class Status:
    """What is known of a server.

    Attributes
    ----------
    running, ready : bool
        Whether its supervisor lives, and whether every part answered.
    url : str or None
    profile : Path or None
        What ``--profile`` takes.
    parts : dict of str to int
        Process ids of its parts.
    seconds : dict of str to float
        When each became healthy, since the start.
    exits : list
        Parts that ended by themselves and were started again: name, exit status, when.
    """

    running: bool
    ready: bool = False
    url: str | None = None
    device: str | None = None
    dtype: str | None = None
    sandbox: bool | None = None
    supervisor: int | None = None
    profile: Path | None = None
    error: str | None = None
    parts: Mapping[str, int] | None = None
    seconds: Mapping[str, float] | None = None
    exits: Sequence[Any] = ()
    folder: Path | None = None

    def describe(self) -> str:
        """What a person wants to know of it, in a few lines."""
        if not self.running:
            return "no server is running" + (
                f"; the last one said: {self.error}" * bool(self.error)
            )
        lines = [
            f"{'up' if self.ready else 'starting'} at {self.url} (process {self.supervisor})",
            f"{self.device}, {self.dtype}, "
            + ("trusted, and sandboxed on request" if self.sandbox else "trusted"),
            f"profile: {self.profile and self.profile.stem}    logs: {self.folder}/logs",
        ]
        lines += [
            f"started again: {name}, which exited with {code}" for name, code, _ in self.exits
        ]
        return "\n".join(lines)


def default_folder() -> Path:
    """Where a server keeps its state and logs unless told otherwise."""
    return environment.cache_folder() / "server"


def up(
    models: Sequence[str] = (),
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: str | None = None,
    sandbox: bool = True,
    hub: str | None = None,
    timeout: float | None = None,
    folder: Path | None = None,
    profile: str = PROFILE,
    owner: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Status:
    """Start a server, wait until it answers, and write a profile for it.

    Parameters
    ----------
    models : sequence of str
        Hub ids, local folders or embedded models to deploy at once; others are deployed when
        first asked for.
    device : str
        ``"auto"`` takes CUDA where ``nvidia-smi`` finds a GPU.
    dtype : str, optional
        Of every model; bfloat16 on GPUs and float32 on CPUs.
    sandbox : bool
        Whether it can run blocks in a process without weights, for clients that ask for that.
    hub : str, optional
        Another Hub for the server to load from (``HF_ENDPOINT``).
    timeout : float, optional
        Execution time limit per request, seconds.
    folder : Path, optional
        State and logs.
    profile : str
        Name of the profile that is written.
    owner : int, optional
        Process id; the server ends when that process does.
    environ : mapping, optional
        Environment variables of the server, for instance other ``NDIF_...`` settings.

    Raises
    ------
    ConfregError
        It runs already, something it needs is missing, or a part did not start: which, why,
        and where its log is.
    """
    if sys.platform != "linux":
        raise ConfregError("confreg starts NDIF servers on Linux only.")
    folder = folder or default_folder()
    if status(folder).running:
        raise ConfregError(
            f"A server runs already in {folder}; `confreg ndif status` shows it and "
            "`confreg ndif down` ends it."
        )
    redis = environment.redis_server()
    if device == "auto":
        device = "cuda" if _has_gpu() else "cpu"
    built = environment.build(gpu=device == "cuda")
    shutil.rmtree(folder / "logs", ignore_errors=True)
    (folder / "logs").mkdir(parents=True)
    (folder / "state.json").unlink(missing_ok=True)
    settings = Settings(
        folder=str(folder.resolve()),
        python=str(built.python),
        redis=redis,
        # Ray's sockets lie below it, and a socket's path has at most 107 characters.
        scratch=tempfile.mkdtemp(prefix="ndif-", dir="/tmp"),
        ports=dict(zip(services.PORTS, processes.free_ports(len(services.PORTS)))),
        device=device,
        dtype=dtype or ("bfloat16" if device == "cuda" else "float32"),
        sandbox=sandbox,
        models=[_model_key(name) for name in models],
        hub=hub,
        timeout=timeout,
        owner=owner,
        profile=str(_profile_path(profile)),
        environ=dict(environ or {}),
    )
    settings.save(folder / "settings.json")
    _supervise(folder)
    return status(folder)


def down(folder: Path | None = None) -> bool:
    """End a server and every process of it; return whether one was running.

    Raises
    ------
    ConfregError
        Some process would not end: which.
    """
    folder = folder or default_folder()
    state = _read(folder)
    running = processes.same(state.get("supervisor"), state.get("started"))
    if running:
        os.kill(state["supervisor"], 15)
        _wait_for_end(state)
    else:
        _end_leftovers(folder)
        if path := state.get("profile"):
            Path(path).unlink(missing_ok=True)
    if left := _read(folder).get("left"):
        raise ConfregError(f"These processes of the server would not end: {'; '.join(left)}.")
    return running


def status(folder: Path | None = None) -> Status:
    """What runs in ``folder``."""
    folder = folder or default_folder()
    state = _read(folder)
    if not processes.same(state.get("supervisor"), state.get("started")):
        return Status(running=False, error=state.get("error"), folder=folder)
    profile = state.get("profile")
    known: dict[str, Any] = {n: state[n] for n in Status.__dataclass_fields__ if n in state}
    known |= {"running": True, "profile": Path(profile) if profile else None, "folder": folder}
    return Status(**known)


def _supervise(folder: Path) -> None:
    """Start the supervisor and wait until it says that the server is ready."""
    command = [sys.executable, "-m", "confreg.places.ndif.server.supervisor", str(folder)]
    with (folder / "logs" / "supervisor.log").open("ab") as log:
        supervisor = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not _read(folder).get("ready"):
            if supervisor.poll() is not None:
                error = _read(folder).get("error") or "its supervisor ended"
                raise ConfregError(
                    f"The NDIF server did not start: {error}. Its logs are in {folder / 'logs'}."
                )
            time.sleep(0.1)
    except BaseException:
        supervisor.terminate()
        supervisor.wait()
        raise


def _wait_for_end(state: Mapping[str, Any], patience: float = 60) -> None:
    import psutil

    try:  # also reaps it, where it is a child of this very process
        psutil.Process(state["supervisor"]).wait(patience)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        raise ConfregError(
            f"The server's supervisor ({state['supervisor']}) does not end."
        ) from None


def _end_leftovers(folder: Path) -> None:
    """End parts whose supervisor was killed: they still know the server's folder."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.environ().get("NDIF_HOME") == str(folder.resolve()):
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "state.json").read_text())
    except FileNotFoundError:
        return {}


def _model_key(name: str) -> str:
    from confreg.models.sources import locate
    from confreg.places.ndif.identity import model_key

    source = locate(name)
    return model_key(source.path, None if source.local else source.revision)


def _has_gpu() -> bool:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    done = subprocess.run([smi, "-L"], capture_output=True, check=False)
    return done.returncode == 0 and bool(done.stdout.strip())


def _profile_path(name: str) -> Path:
    from confreg.places import profiles

    return profiles.folders()[0] / f"{name}.toml"
