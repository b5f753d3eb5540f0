"""What a server of one's own needs, and what is said where it is missing."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from confreg.errors import ConfregError
from confreg.places.ndif import server
from confreg.places.ndif.server import environment, processes, services, telling


def script(path, version: str):
    """A stand-in for a Python that says it is of some version."""
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)
    return path


def test_a_given_python_must_fit(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFREG_NDIF_PYTHON", str(script(tmp_path / "python", "3.13")))
    assert environment.find_python() == (str(tmp_path / "python"), "3.13")
    monkeypatch.setenv("CONFREG_NDIF_PYTHON", str(script(tmp_path / "python", "3.10")))
    with pytest.raises(ConfregError, match=r"is not a Python 3\.12 or 3\.13"):
        environment.find_python()


def test_pyenv_is_searched_behind_its_shims(tmp_path, monkeypatch):
    shims, real = tmp_path / "shims", tmp_path / "versions" / "3.12.7" / "bin"
    shims.mkdir()
    real.mkdir(parents=True)
    refuses = shims / "python3.12"
    refuses.write_text("#!/bin/sh\nexit 127\n")
    refuses.chmod(0o755)
    script(real / "python3.12", "3.12")
    monkeypatch.setenv("PATH", str(shims))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.delenv("CONFREG_NDIF_PYTHON", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert environment.find_python() == (str(real / "python3.12"), "3.12")
    (real / "python3.12").unlink()
    with pytest.raises(ConfregError, match=r"needs Python 3\.12 or 3\.13"):
        environment.find_python()


def test_without_redis_nothing_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.shutil, "which", lambda *a, **k: None)
    monkeypatch.setattr(environment, "build", lambda: pytest.fail("built"))
    with pytest.raises(ConfregError, match="apt-get install redis-server"):
        server.up(folder=tmp_path)


def test_half_an_environment_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path))
    folder = environment._folder("3.12")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    assert environment.existing() is None
    (folder / "complete.json").write_text("{}")
    assert environment.existing() == environment.Environment(folder, "3.12")


def test_an_environment_for_cpus_serves_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path))
    folder = environment._folder("3.12", cpu_only=True)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()
    (folder / "complete.json").write_text("{}")
    assert environment.existing(gpu=True) is None
    assert environment.existing(gpu=False).folder == folder
    whole = environment._folder("3.12")
    folder.rename(whole)
    assert environment.existing(gpu=True).folder == environment.existing(gpu=False).folder == whole


# Stand-ins for a Python with pip, and for uv: they write down what they are asked for.
INSTALLER = """#!/bin/sh
echo "$0 $@" >> {calls}
case "$*" in
  *"pip install"*) echo "  Downloading torch-2.14.1-cp312-cp312-linux.whl (554.6 MB)"
                   echo "Installing collected packages: a, b, c"; exit {code};;
esac
for last; do :; done
mkdir -p "$last/bin" && cp "$0" "$last/bin/python"
"""


@pytest.fixture
def installers(tmp_path, monkeypatch):
    """``installers(uv)``: a Python to build from and, with an exit status, uv; returns calls."""
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CONFREG_TORCH_INDEX", "")

    def make(uv: int | None = None):
        calls = tmp_path / "calls"
        for name, code in {"python": 0, "uv": uv}.items():
            if code is not None:
                (tmp_path / name).write_text(INSTALLER.format(calls=calls, code=code))
                (tmp_path / name).chmod(0o755)
        monkeypatch.setattr(environment, "find_python", lambda: (str(tmp_path / "python"), "3.12"))
        found = None if uv is None else str(tmp_path / "uv")
        monkeypatch.setattr(environment.shutil, "which", lambda name, **_: found)
        return lambda: [line.split(" ", 1) for line in calls.read_text().splitlines()]

    return make


def test_it_is_built_with_uv_where_that_is_installed(installers, capfd):
    calls = installers(uv=0)
    built = environment.build()
    assert [command.rpartition("/")[2] for command, _ in calls()] == ["uv", "uv"]
    assert f"pip install --python {built.python}" in calls()[1][1]
    assert environment.existing() == built
    said = capfd.readouterr().err
    assert "6 GB, most of it torch for CUDA. It takes 3 minutes" in said
    assert "installing 3 packages" in said


def test_where_uv_cannot_pip_does(installers, capfd):
    calls = installers(uv=1)
    built = environment.build()
    assert [words.split(" ")[0] for _, words in calls()] == ["venv", "pip", "-m", "-m"]
    assert calls()[3][0] == str(built.python)
    assert "uv could not; trying with pip" in capfd.readouterr().err
    assert built.folder.with_name(f"{built.folder.name}.log").read_text().count("Downloading") == 2


def test_cpu_builds_of_torch_where_there_is_no_gpu(installers, monkeypatch, tmp_path, capfd):
    calls = installers()
    (tmp_path / "index" / "torch").mkdir(parents=True)
    folder = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), folder) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{served.server_address[1]}"
        monkeypatch.setenv("CONFREG_TORCH_INDEX", index)
        built = environment.build(gpu=False)
        served.shutdown()
    assert f"--extra-index-url {index}" in calls()[-1][1]
    assert built.folder.name.endswith("-cpu")
    assert "2 GB, with torch for CPUs" in capfd.readouterr().err
    # It serves no GPU: another is built, from the usual places.
    assert environment.build(gpu=True).folder != built.folder
    assert "--extra-index-url" not in calls()[-1][1]


def test_an_index_that_does_not_answer_is_done_without(installers, monkeypatch):
    calls = installers()
    monkeypatch.setenv("CONFREG_TORCH_INDEX", "http://127.0.0.1:9/none")
    built = environment.build(gpu=False)
    assert "--extra-index-url" not in calls()[-1][1]
    assert not built.folder.name.endswith("-cpu")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("  Downloading torch-2.14.1-cp312-cp312-linux.whl (554.6 MB)", "torch, 554.6 MB"),
        ("  Downloading py_spy-0.4.tar.gz (2 kB)", "py_spy, 2 kB"),
        ("Downloading nvidia-cublas-cu12 (600.0MiB)", "nvidia-cublas-cu12, 600.0MiB"),
        (" Downloaded nvidia-cublas-cu12", "fetched nvidia-cublas-cu12"),
        ("Prepared 131 packages in 12s", "installing 131 packages"),
        ("Requirement already satisfied: torch", None),
    ],
)
def test_what_is_told_of_an_installers_line(line, says, monkeypatch, capfd):
    monkeypatch.setattr(telling, "SILENCE", -1)
    with telling.Teller() as teller:
        teller.hear(line)
    assert (says or "") in capfd.readouterr().err
    assert bool(says) == bool(teller._said > teller._began)


def test_a_failing_installation_is_said(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho there is no ensurepip\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "find_python", lambda: (str(python), "3.12"))
    monkeypatch.setattr(environment.shutil, "which", lambda name, **_: None)
    with pytest.raises(ConfregError, match=r"there is no ensurepip \(log: .*\.log\)"):
        environment.build()
    assert environment.existing() is None


def test_status_and_down_where_nothing_runs(tmp_path):
    assert server.status(tmp_path).running is False
    assert server.down(tmp_path) is False


def test_settings_survive_json(tmp_path):
    settings = services.Settings("f", "/env/bin/python", "redis", "/tmp/x", {"api": 1})
    settings.save(tmp_path / "s.json")
    assert services.Settings.load(tmp_path / "s.json") == settings


def test_every_port_and_address_is_loopback(tmp_path):
    ports = dict(zip(services.PORTS, processes.free_ports(len(services.PORTS))))
    assert len(set(ports.values())) == len(ports)
    settings = services.Settings(str(tmp_path), "/env/bin/python", "redis-server", "/tmp/x", ports)
    parts = [services.redis, services.store, services.api]
    commands = [" ".join(part(settings)) for part in parts]
    commands.append(" ".join(services.ray(settings, {})))
    assert all("127.0.0.1" in command for command in commands)
    assert "0.0.0.0" not in " ".join([*commands, json.dumps(services.environment(settings))])


DAEMON = """
import os, sys, time
from confreg.places.ndif.server import processes
processes.adopt_orphans()
if os.fork() == 0:
    os.setsid()
    if os.fork():          # the daemon's parent ends at once
        os._exit(0)
    time.sleep(60)
print("ready", flush=True)
sys.stdin.readline()
print(len(processes.end_descendants(os.getpid(), grace=2)), flush=True)
"""


def test_daemons_are_adopted_and_ended():
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    daemon = wait_for(lambda: [
        p for p in processes.descendants(process.pid) if p.status() == psutil.STATUS_SLEEPING
    ])  # fmt: skip
    assert all(p.ppid() == process.pid for p in daemon)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "0\n"
    process.wait()
    assert not any(p.is_running() for p in daemon)


def wait_for(condition, patience=10.0):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_reused_pid_is_not_the_server():
    me = psutil.Process()
    assert processes.same(me.pid, me.create_time())
    assert not processes.same(me.pid, me.create_time() - 1000)
    assert not processes.same(None, None)
    assert os.getpid() == me.pid
