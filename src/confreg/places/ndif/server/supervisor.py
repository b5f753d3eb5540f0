"""The one process that starts an NDIF server, keeps it alive, and ends all of it.

Run as ``python -m confreg.places.ndif.server.supervisor FOLDER``; reads ``settings.json`` there
and keeps ``state.json`` up to date until it is told to end (SIGTERM).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from confreg.places.ndif.server import processes, services
from confreg.places.ndif.server.services import Settings

# How long a part may take to become healthy before the start counts as failed.
PATIENCE = 240.0
# A part that ends by itself is started again, up to so many times in so many seconds.
RESTARTS, WITHIN = 10, 1800.0


class StartError(Exception):
    """A part of the server did not become healthy."""


class Supervisor:
    """Starts, watches and ends the parts of one server.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.folder = Path(settings.folder)
        self.environment = services.environment(settings)
        self.commands: dict[str, tuple[list[str], Mapping[str, str]]] = {}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.ended = False
        self.began = time.monotonic()
        me = psutil.Process()
        self.state: dict[str, Any] = {
            "supervisor": me.pid,
            "started": me.create_time(),
            "url": settings.url,
            "device": settings.device,
            "dtype": settings.dtype,
            "sandbox": settings.sandbox,
            "models": settings.models,
            "profile": settings.profile,
            "ready": False,
            "error": None,
            "parts": {},
            "seconds": {},
            "exits": [],
        }

    def run(self) -> int:
        """Bring the server up, watch over it until told to end, and tear it down."""
        processes.adopt_orphans()
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            self.start()
            self.write_profile()
            self.save(ready=True)
            while not self.ended:
                self.watch()
                time.sleep(0.5)
        except StartError as error:
            self.save(error=str(error))
        finally:
            self.save(ready=False)
            if self.settings.profile is not None:
                Path(self.settings.profile).unlink(missing_ok=True)
            left = processes.end_descendants(os.getpid())
            shutil.rmtree(self.settings.scratch, ignore_errors=True)
            self.save(parts={}, left=[" ".join(p.cmdline())[:200] for p in left])
        return 1 if self.state["error"] else 0

    def start(self) -> None:
        """Start every part, each as soon as what it needs is healthy.

        Raises
        ------
        StartError
        """
        settings, port = self.settings, self.settings.ports
        self.spawn("redis", services.redis(settings))
        self.spawn("store", services.store(settings))
        self.spawn("ray", services.ray(settings, self.resources()))
        self.wait("redis", lambda: _redis_answers(port["redis"]))
        self.spawn("api", services.api(settings), NDIF_SERVICE="api")
        dashboard = f"http://127.0.0.1:{port['dashboard']}"
        self.wait("ray", lambda: b"ALIVE" in _get(f"{dashboard}/nodes?view=summary"))
        self.spawn("dispatcher", services.dispatcher(settings), NDIF_SERVICE="api")
        self.launch_controller()
        self.wait("api", lambda: bool(_get(f"{settings.url}/ping")))
        self.wait("connected", lambda: bool(_get(f"{settings.url}/connected")))
        self.wait("status", lambda: bool(_get(f"{settings.url}/status", timeout=60)))
        self.wait("store", lambda: _listens(port["store"]))
        if settings.models:
            self.wait("models", self._models_run)

    def write_profile(self) -> None:
        """Tell clients where the server is."""
        if self.settings.profile is not None:
            path = Path(self.settings.profile)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.settings.profile_text())

    def resources(self) -> dict[str, float]:
        """What Ray is told that this machine has."""
        if self.settings.device == "cpu":
            return services.cpu_resources()
        command = services.cuda_resources(self.settings)
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        if done.returncode:
            raise StartError(f"cannot count this machine's GPUs: {done.stderr.decode()[-300:]}")
        return json.loads(done.stdout)

    def launch_controller(self) -> None:
        """Launch NDIF's controller into Ray; tried thrice, Ray being up but young."""
        command = services.controller(self.settings)
        address = f"127.0.0.1:{self.settings.ports['gcs']}"
        for _ in range(3):
            launch = self.spawn("controller", command, RAY_ADDRESS=address, NDIF_SERVICE="ray")
            if launch.wait(timeout=PATIENCE) == 0:
                del self.running["controller"], self.commands["controller"]
                self.state["parts"].pop("controller")  # what it launched lives on inside Ray
                self.step("controller")
                return
        raise StartError(f"the controller did not launch ({self.log('controller')})")

    def spawn(self, name: str, command: list[str], **extra: str) -> subprocess.Popen[bytes]:
        """Start one part, with a log of its own."""
        self.commands[name] = (command, extra)
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**self.environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,
            )
        self.running[name] = process
        self.save(parts={**self.state["parts"], name: process.pid})
        return process

    def wait(self, what: str, healthy: Callable[[], bool]) -> None:
        """Wait until a part answers."""
        deadline = time.monotonic() + PATIENCE
        last: Exception | None = None
        while time.monotonic() < deadline and not self.ended:
            for name, process in self.running.items():
                if process.poll() is not None:
                    raise StartError(f"{name} exited with {process.returncode} ({self.log(name)})")
            try:
                if healthy():
                    self.step(what)
                    return
            except OSError as error:  # refused, timed out, or an HTTP error
                last = error
            time.sleep(0.1)
        if self.ended:
            raise StartError("it was told to end while starting")
        raise StartError(f"{what} did not become healthy in {PATIENCE:.0f} s: {last}")

    def watch(self) -> None:
        """Start again what ended by itself, and end with the owner."""
        self._reap()
        owner = self.settings.owner
        if owner is not None and not psutil.pid_exists(owner):
            self.ended = True
            return
        for name, process in list(self.running.items()):
            if process.poll() is None:
                continue
            self.state["exits"].append([name, process.returncode, round(time.time())])
            if name == "ray" or self._ended_lately(name) > RESTARTS:
                self.state["error"] = f"{name} exited with {process.returncode}"
                self.ended = True
                return
            command, extra = self.commands[name]
            self.spawn(name, command, **extra)
            if name == "redis":
                # The dispatcher says once that it is connected, and Redis has forgotten it.
                self.running["dispatcher"].terminate()

    def step(self, name: str) -> None:
        """Note when a part became healthy."""
        self.state["seconds"][name] = round(time.monotonic() - self.began, 1)
        self.save()

    def save(self, **changes: Any) -> None:
        """Write the state, in one step."""
        self.state |= changes
        part = self.folder / "state.json.part"
        part.write_text(json.dumps(self.state, indent=1))
        part.replace(self.folder / "state.json")

    def log(self, name: str) -> Path:
        """Path of a part's log."""
        return self.folder / "logs" / f"{name}.log"

    def _ended_lately(self, name: str) -> int:
        """How often a part has ended by itself in the last half hour."""
        since = time.time() - WITHIN
        return sum(part == name and when > since for part, _, when in self.state["exits"])

    def _models_run(self) -> bool:
        status = json.loads(_get(f"{self.settings.url}/status", timeout=60))
        states = {
            d.get("model_key"): d.get("application_state") for d in status["deployments"].values()
        }
        return all(states.get(key) == "RUNNING" for key in self.settings.models)

    def _reap(self) -> None:
        """Collect adopted processes that have ended; our own are left to `subprocess`."""
        own = {process.pid for process in self.running.values()}
        me = os.getpid()
        children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
        for pid in set(map(int, children)) - own:
            os.waitpid(pid, os.WNOHANG)  # does nothing while it runs

    def _end(self, *_: Any) -> None:
        self.ended = True


def _redis_answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")


def _listens(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


def _get(url: str, timeout: float = 5) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout) as response:
        return response.read()


def main(folder: str) -> int:
    """Run the supervisor of the server in ``folder``."""
    return Supervisor(Settings.load(Path(folder) / "settings.json")).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
