"""What a person sees of a server's faults: one sentence, exit status 2, a store that resumes."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from fake_ndif import KEY, FakeNdif

from confreg import cli
from confreg.places.ndif import watch
from confreg.places.ndif.journal import journal_path


@pytest.fixture
def run(checkpoint, words, tmp_path, capsys, monkeypatch):
    """``run(host, *more)``: exit status of the command line, and what it said."""
    monkeypatch.setattr(watch, "LOST_AFTER", 0.3)
    text = tmp_path / "text.txt"
    text.write_text("\n".join(words))

    def get(host: str, *more: str) -> tuple[int | str | None, str]:
        profile = tmp_path / "there.toml"
        profile.write_text(f'kind = "ndif"\nhost = "{host}"\ntrusted = true\nretries = 0\n')
        command = [
            *("run", "entropy_neurons", "--model", str(checkpoint("llama")), "--text", str(text)),
            *("--profile", str(profile), "--dtype", "float32", "--out", str(tmp_path / "run.zarr")),
            *("--sequence-length", "16", "--max-tokens", "64", "--quiet", *more),
        ]
        with pytest.raises(SystemExit) as ended:
            cli.main(command)
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1, said
        assert said.startswith("confreg: ")
        return ended.value.code, said

    return get


def submitted(out: Path) -> int:
    lines = journal_path(out).read_text().splitlines() if journal_path(out).exists() else []
    return sum(json.loads(line)["event"] == "submitted" for line in lines)


def test_a_host_that_accepts_and_never_answers(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        code, said = run(f"http://127.0.0.1:{silent.getsockname()[1]}", "-P", "deadline=1")
        assert time.monotonic() - began < 20
    assert code == 2
    assert "no answer in time" in said
    assert (tmp_path / "run.zarr").is_dir()
    assert submitted(tmp_path / "run.zarr") == 0


def test_a_wrong_key(run, tmp_path, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    with FakeNdif() as fake:
        fake.submit = lambda n, headers: (401, {"detail": "Invalid API key."})
        code, said = run(fake.url)
        assert fake.submitted == 1  # not tried again
    assert code == 2
    assert "does not accept the NDIF key (401). Set NDIF_API_KEY" in said
    assert KEY not in said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_server_of_another_nnsight(run):
    with FakeNdif() as fake:
        fake.env["packages"]["nnsight"] = "0.7.3"
        code, said = run(fake.url)
        assert fake.submitted == 0
    assert code == 2
    assert "0.7.3 there: the request may not be read there" in said


def test_a_job_that_hangs_meets_the_deadline_and_is_asked_for_again(run, tmp_path):
    with FakeNdif() as fake:
        fake.poll = lambda job, n: (200, {"id": job, "status": "RUNNING", "description": ""})
        code, said = run(fake.url, "-P", "deadline=0.5", "-P", "poll=0.05")
        assert code == 2
        assert "did not end within the deadline" in said
        first = len(fake.polled)
        run(fake.url, "-P", "deadline=0.5", "-P", "poll=0.05")
        assert fake.polled[first] == "job1"
