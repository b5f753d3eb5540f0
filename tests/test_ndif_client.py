"""The client, against a server that does as it is told."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
import tenacity
import torch
from fake_ndif import KEY, FakeNdif, blob, status

from confreg import models
from confreg.errors import ConfregError
from confreg.places.ndif import client as client_module
from confreg.places.ndif import http
from confreg.places.ndif.client import Client, identify, load_result, model_key
from confreg.places.ndif.faults import (
    BlockFailed,
    DeadlineExceeded,
    Interrupted,
    TooLarge,
    Transient,
)
from confreg.places.ndif.journal import Journal
from confreg.places.profiles import NdifProfile


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(tenacity, "wait_exponential_jitter", lambda **_: tenacity.wait_none())
    monkeypatch.setattr(client_module, "LOST_AFTER", 0.3)
    monkeypatch.delenv("NDIF_API_KEY", raising=False)


@pytest.fixture
def fake():
    with FakeNdif() as server:
        yield server


@pytest.fixture(scope="module")
def structure(checkpoint):
    return models.load(str(checkpoint("llama")), weights=False)


@pytest.fixture
def connect(fake, structure, tmp_path):
    clients = []

    def make(**settings):
        settings = {"host": fake.url, "trusted": True, "poll": 0.02, "retries": 2, **settings}
        profile = NdifProfile(kind="ndif", name="test", **settings)
        clients.append(Client(profile, structure, tmp_path / "jobs.jsonl"))
        return clients[-1]

    yield make
    for client in clients:
        client.server.close()


def body() -> bytes:
    return b"request"


def test_a_job_is_submitted_written_down_polled_and_collected(fake, connect, tmp_path):
    fake.poll = lambda job, n: (404, {}) if n == 1 else (200, fake.completed())
    client = connect()
    assert client.run("u", body)["x"].tolist() == [0, 1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["submitted", "collected"]
    (cost,) = client.journal.costs()
    assert (cost.id, cost.bytes_up, cost.bytes_down) == ("job1", 7, len(fake.result))
    assert cost.seconds == 0.5


def test_a_job_of_a_killed_client_is_collected_and_not_submitted_again(fake, connect):
    # Killed while it waited: the journal was written before.
    connect().journal.submitted("u", "job7", 10)
    assert connect().run("u", body)["x"].tolist() == [0, 1, 2, 3]
    assert fake.submitted == 0
    assert fake.polled == ["job7"]


def test_a_result_that_is_not_in_the_store_yet_is_fetched_again(fake, connect):
    connect().run("u", body)
    again = connect()
    again.run("u", body)
    assert fake.submitted == 1
    assert len(again.journal.costs()) == 1
    again.journal.stored("u")
    connect().run("u", body)
    assert fake.submitted == 2


def test_an_evicted_job_is_submitted_again(fake, connect):
    evicted = status("ERROR", "Replica was evicted while processing your request.")
    fake.poll = lambda job, n: (200, evicted if job == "job1" else fake.completed())
    assert "x" in connect().run("u", body)
    assert fake.submitted == 2


def test_an_error_of_the_block_is_not_tried_again(fake, connect):
    text = 'Traceback (most recent call last):\n  File "r.py", line 3\nValueError: no such token'
    fake.poll = lambda job, n: (200, status("ERROR", text))
    with pytest.raises(BlockFailed, match="ValueError: no such token") as caught:
        connect().run("u", body)
    assert caught.value.traceback == text
    assert fake.submitted == 1


@pytest.mark.parametrize(
    ("description", "meta"),
    [
        ("Your job exceeded the execution timeout of 60s.", None),
        ("Traceback ...\ntorch.OutOfMemoryError: CUDA out of memory. Tried ...", None),
        ("Traceback ...\nRuntimeError: something", {"alloc_shortfall_by_gpu": {"0": 5}}),
    ],
)
def test_what_is_too_large_says_so(fake, connect, description, meta):
    fake.poll = lambda job, n: (200, status("ERROR", description, meta=meta))
    with pytest.raises(TooLarge):
        connect().run("u", body)
    assert fake.submitted == 1


def test_a_result_over_the_limit_is_not_loaded(fake, connect):
    with pytest.raises(TooLarge, match="max_result"):
        connect(max_result=len(fake.result) - 1).run("u", body)
    assert connect(max_result=len(fake.result)).run("u", body)


def test_an_unknown_model_is_a_sentence(fake, connect):
    reason = "Could not deploy this model: Repository Not Found for url ..."
    fake.poll = lambda job, n: (200, status("ERROR", reason))
    with pytest.raises(ConfregError, match=r"cannot deploy .*Repository Not Found"):
        connect().run("u", body)
    assert fake.submitted == 1


def test_a_lost_job_is_submitted_again(fake, connect):
    fake.poll = lambda job, n: (404, {}) if job == "job1" else (200, fake.completed())
    assert "x" in connect().run("u", body)
    assert fake.submitted == 2


def test_a_server_that_is_away_for_a_moment_loses_nothing(fake, connect):
    fake.poll = lambda job, n: (
        (503, {"detail": "reconnecting"}) if n < 4 else (200, fake.completed())
    )
    assert "x" in connect().run("u", body)
    assert fake.submitted == 1


def test_attempts_are_counted(fake, connect):
    fake.submit = lambda n, headers: (503, {"detail": "compute backend is reconnecting"})
    with pytest.raises(ConfregError, match=r"reconnecting.*Tried 3 times"):
        connect().run("u", body)
    assert fake.submitted == 3


def test_a_job_that_does_not_end_meets_the_deadline(fake, connect):
    fake.poll = lambda job, n: (200, status("QUEUED"))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"job1 .*QUEUED.*deadline="):
        connect(deadline=0.4).run("u", body)
    assert time.monotonic() - began < 2
    # The next run asks for it once more, and then pays again.
    fake.poll = lambda job, n: (200, status("QUEUED") if job == "job1" else fake.completed())
    assert "x" in connect(deadline=0.4).run("u", body)
    assert fake.submitted == 2


def test_a_host_that_accepts_and_never_answers(connect):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ConfregError, match="cannot be reached: no answer in time"):
            connect(host=host, deadline=0.3, retries=1).run("u", body)
        assert time.monotonic() - began < 3


def test_an_unreachable_host(connect):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(ConfregError, match="cannot be reached: Connection refused"):
        connect(host=host).run("u", body)


def test_a_wrong_key_is_said_and_not_shown(fake, connect, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    seen = []

    def refuse(n, headers):
        seen.append(headers["ndif-api-key"])
        return 403, {"detail": "Invalid API key."}

    fake.submit = refuse
    with pytest.raises(ConfregError, match="does not accept the NDIF key") as caught:
        connect().run("u", body)
    assert seen == [KEY]
    assert KEY not in str(caught.value)


def test_an_untrusted_host_is_refused_before_anything_is_sent(fake, connect):
    with pytest.raises(ConfregError, match=r"pickles.*trusted = true"):
        connect(trusted=False)
    assert fake.submitted == 0


@pytest.mark.parametrize("host", ["http://ndif.example.org", "http://10.0.0.7:5001"])
def test_plain_http_is_for_loopback_only(connect, host):
    profile = NdifProfile(kind="ndif", name="test", host=host, trusted=True)
    with pytest.raises(ConfregError, match="not encrypted"):
        http.check_host(profile)
    http.check_host(profile.model_copy(update={"allow_http": True}))


def test_a_result_is_not_fetched_in_the_clear_from_elsewhere(fake, connect):
    elsewhere = status("COMPLETED", data="http://results.example.org/job1.pt")
    fake.poll = lambda job, n: (200, elsewhere)
    with pytest.raises(ConfregError, match="not encrypted"):
        connect().run("u", body)


def test_a_folder_of_this_machine_is_no_model_of_another(structure):
    profile = NdifProfile(kind="ndif", name="t", host="https://ndif.example.org", trusted=True)
    with pytest.raises(ConfregError, match="is a folder of this machine"):
        identify(structure, profile)


def test_model_keys_are_nnsights(structure, monkeypatch):
    from nnsight.modeling import huggingface

    monkeypatch.setitem(huggingface._ID_CACHE, structure.nn.repo_id, "owner/name")
    assert structure.nn.to_model_key() == model_key("owner/name")


def test_stopping_interrupts_a_wait(fake, connect):
    fake.poll = lambda job, n: (200, status("RUNNING"))
    client = connect(poll=30)
    threading.Timer(0.3, client.stop).start()
    began = time.monotonic()
    with pytest.raises(Interrupted):
        client.run("u", body)
    assert time.monotonic() - began < 3
    assert client.journal.job("u") is not None


def test_results_without_code_run_none(monkeypatch):
    loads = []
    load = torch.load
    monkeypatch.setattr(
        torch, "load", lambda *a, **k: loads.append(k["weights_only"]) or load(*a, **k)
    )
    block = {"effects": torch.ones(2, 3), "kept": 3, "names": ["a"]}
    assert load_result(blob(block))["kept"] == 3
    assert loads == [True]
    assert load_result(blob({"p": Journal}))["p"] is Journal  # a trusted host's pickle
    assert loads == [True, True, False]
    with pytest.raises(Transient, match="cannot be read"):
        load_result(blob(block)[:-20])


def test_a_journal_survives_a_torn_line(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).submitted("a", "job1", 5)
    with path.open("a") as file:
        file.write('{"at": 1, "event": "subm')
    journal = Journal(path)
    journal.submitted("b", "job2", 6)
    again = Journal(path)
    assert [again.job(k).id for k in ("a", "b")] == ["job1", "job2"]
    assert again.keys("") == ["a", "b"]
    again.failed("a", "job1", "evicted")
    assert Journal(path).job("a") is None
    assert Journal(path).submissions() == 2
