"""The Python environment that an NDIF server of one's own runs in.

NDIF 0.1 needs Python 3.12 or 3.13 and pins that a client does not share, so the server never
runs in the client's environment. It is built once, in the user's cache, and reused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from confreg.errors import ConfregError
from confreg.places.ndif.server.telling import Teller

PYTHONS = ("3.12", "3.13")

# nnsight 0.8.1 on the server fails every deployment of ndif 0.1.2.
PINS = (
    "ndif[api,ray]==0.1.2",
    "nnsight==0.8.0",
    "transformers==5.22.2",
    "torch>=2.14,<2.16",
    "ray[default]==2.60.0",
    "moto[server]==5.2.5",
)

_COMPLETE = "complete.json"
# PyTorch's documented index of builds without CUDA.
_TORCH_CPU = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Environment:
    """A finished environment.

    Attributes
    ----------
    folder : Path
    version : str
        Of its Python, ``"3.12"``.
    """

    folder: Path
    version: str

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def cache_folder() -> Path:
    """Where servers are kept: ``$CONFREG_CACHE/ndif``, or in the user's cache directory."""
    if override := os.environ.get("CONFREG_CACHE"):
        return Path(override).expanduser() / "ndif"
    import platformdirs

    return Path(platformdirs.user_cache_dir("confreg")) / "ndif"


def redis_server() -> str:
    """Path of the system's ``redis-server``.

    Raises
    ------
    ConfregError
        It is not installed.
    """
    # Debian keeps it in a folder that is not on every user's PATH.
    found = shutil.which("redis-server") or shutil.which("redis-server", path="/usr/sbin:/sbin")
    if found is None:
        raise ConfregError(
            "An NDIF server needs redis-server, which is not installed: "
            "`apt-get install redis-server`, `brew install redis` or `conda install redis`."
        )
    return found


def find_python() -> tuple[str, str]:
    """A Python that NDIF runs on, and its version: ``("/usr/bin/python3.12", "3.12")``.

    ``CONFREG_NDIF_PYTHON`` names one; else this very interpreter, the ones on the PATH and
    those of pyenv are tried.

    Raises
    ------
    ConfregError
        There is none.
    """
    given = os.environ.get("CONFREG_NDIF_PYTHON")
    for candidate in [given] if given else _candidates():
        version = _version(candidate)
        if version in PYTHONS:
            return candidate, version
    wanted = " or ".join(PYTHONS)
    if given:
        raise ConfregError(f"CONFREG_NDIF_PYTHON={given!r} is not a Python {wanted}.")
    raise ConfregError(
        f"An NDIF server needs Python {wanted} (with venv), and none was found. Install one "
        "(`pyenv install 3.12`, `uv python install 3.12`, `apt-get install python3.12-venv`) "
        "or set CONFREG_NDIF_PYTHON to its path."
    )


def _candidates() -> Iterator[str]:
    yield sys.executable
    for version in PYTHONS:
        if found := shutil.which(f"python{version}"):
            yield found
        # A shim of pyenv on the PATH refuses to run while another version is selected.
        root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
        yield from map(str, sorted(root.glob(f"versions/{version}.*/bin/python{version}")))


def _version(python: str) -> str | None:
    """``"3.12"`` where ``python`` runs and can make environments."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def existing(gpu: bool = True) -> Environment | None:
    """The environment, where it has been built already.

    Parameters
    ----------
    gpu : bool
        Whether it must be able to use a GPU; an environment that can serves both.
    """
    for version in PYTHONS:
        for cpu_only in (False, True) if not gpu else (False,):
            environment = Environment(_folder(version, cpu_only), version)
            if (environment.folder / _COMPLETE).is_file() and environment.python.exists():
                return environment
    return None


def build(gpu: bool = True) -> Environment:
    """Return the environment, building it the first time.

    With ``uv`` where that is installed, else with pip, whose own settings count. Without a GPU
    torch comes from PyTorch's index of CPU builds, where that can be reached: the environment is
    a third of the size. ``CONFREG_TORCH_INDEX`` names another such index, or, empty, none.

    Parameters
    ----------
    gpu : bool
        Whether models will be on GPUs.

    Raises
    ------
    ConfregError
        No Python, or the installation failed: its last lines and where its log is.
    """
    if (found := existing(gpu)) is not None:
        return found
    python, version = find_python()
    index = None if gpu else _cpu_index()
    environment = Environment(_folder(version, cpu_only=index is not None), version)
    environment.folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(_beside(environment.folder, "lock")):
        if existing(gpu) is None:  # else another process built it while this one waited
            _install(python, environment, index)
    return environment


def _cpu_index() -> str | None:
    """An index that has CPU builds of torch, if there is one that answers."""
    index = os.environ.get("CONFREG_TORCH_INDEX", _TORCH_CPU)
    if not index:
        return None
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=10):
            return index
    except (OSError, ValueError):
        return None


def _install(python: str, environment: Environment, index: str | None) -> None:
    folder, log = environment.folder, _beside(environment.folder, "log")
    size = "2 GB, with torch for CPUs" if index else "6 GB, most of it torch for CUDA"
    with Teller() as teller, log.open("w") as output:
        teller.say(
            f"Building the NDIF server's environment in {folder}, once: about {size}. It takes 3 "
            f"minutes on a quick machine and line, up to 30 on a busy one (log: {log})."
        )
        ways = list(_ways(python, folder, index))
        for number, commands in enumerate(ways, 1):
            shutil.rmtree(folder, ignore_errors=True)
            if all(_run(command, output, teller) for command in commands):
                break
            if number < len(ways):
                teller.say(f"{Path(commands[0][0]).name} could not; trying with pip.")
        else:
            tail = " ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
            raise ConfregError(
                f"Could not build the NDIF server's environment: {tail} (log: {log})"
            )
    # Written last and in one step: an interrupted installation is never taken for a whole one.
    marker = folder / (_COMPLETE + ".part")
    marker.write_text(json.dumps({"python": environment.version, "pins": PINS}))
    marker.replace(folder / _COMPLETE)


def _ways(python: str, folder: Path, index: str | None) -> Iterator[list[list[str]]]:
    """Commands that make the environment, the quickest way first."""
    target = str(folder / "bin" / "python")
    more = [] if index is None else ["--extra-index-url", index]
    if uv := shutil.which("uv"):
        # By default uv takes all that the extra index has from there, in whatever version.
        best = ["--index-strategy", "unsafe-best-match"]
        yield [
            [uv, "venv", "--python", python, str(folder)],
            [uv, "pip", "install", "--python", target, *best, *more, *PINS],
        ]
    pip = [target, "-m", "pip", "install", "--disable-pip-version-check"]
    yield [[python, "-m", "venv", str(folder)], [*pip, *more, *PINS]]


def _run(command: list[str], output: TextIO, teller: Teller) -> bool:
    """Run a command, write down what it says, and tell of each package; whether it succeeded."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            output.write(line)
            output.flush()
            teller.hear(line)
        return process.wait() == 0
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _folder(version: str, cpu_only: bool = False) -> Path:
    key = hashlib.sha256("\n".join(PINS).encode()).hexdigest()[:12]
    return cache_folder() / f"python{version}-{key}{'-cpu' * cpu_only}"


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
