"""The client, against a server that does as it is told."""

from __future__ import annotations

import json
import math
import socket
import threading
import time

import pytest
import tenacity
import torch
from fake_ndif import KEY, FakeNdif, blob, status

from confreg import models
from confreg.errors import ConfregError
from confreg.places.ndif import http, watch
from confreg.places.ndif.client import Client
from confreg.places.ndif.faults import (
    BlockFailed,
    DeadlineExceeded,
    Interrupted,
    TooLarge,
    Transient,
)
from confreg.places.ndif.identity import identify, model_key
from confreg.places.ndif.journal import Journal
from confreg.places.ndif.travel import SHIPPED, load_result
from confreg.places.profiles import NdifProfile


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(tenacity, "wait_exponential_jitter", lambda **_: tenacity.wait_none())
    monkeypatch.setattr(watch, "LOST_AFTER", 0.3)
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
        connect(deadline=0.6).run("u", body)
    assert time.monotonic() - began < 2
    # The next run asks for it once more, and then pays again.
    fake.poll = lambda job, n: (200, status("QUEUED") if job == "job1" else fake.completed())
    assert "x" in connect(deadline=0.6).run("u", body)
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
    assert client.journal.jobs("u")


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
    assert [[job.id for job in again.jobs(k)] for k in ("a", "b")] == [["job1"], ["job2"]]
    assert again.keys("") == ["a", "b"]
    again.failed("a", "job1", "evicted")
    assert Journal(path).jobs("a") == []
    lines = path.read_text().splitlines()
    assert sum('"submitted"' in line for line in lines) == 2


def states(fake, script):
    """Let each job say what ``script`` has for it: a status, or a list of them by poll."""
    polls: dict[str, int] = {}

    def poll(job, n):
        says = script.get(job, "COMPLETED")
        if isinstance(says, list):
            polls[job] = polls.get(job, -1) + 1
            says = says[min(polls[job], len(says) - 1)]
        if says is None:
            return 404, {}
        return 200, fake.completed() if says == "COMPLETED" else status(says)

    fake.poll = poll


@pytest.mark.parametrize("stuck", [None, "QUEUED", "DISPATCHED", "RUNNING"])
def test_a_job_that_does_not_move_is_submitted_again(fake, connect, tmp_path, stuck):
    states(fake, {"job1": stuck})
    said = []
    client = connect()
    client.report = said.append
    assert client.run("u", body)["x"].tolist() == [0, 1, 2, 3]
    assert fake.submitted == 2
    (line,) = said
    assert "job1" in line
    assert "the first result counts" in line
    events = [json.loads(line)["event"] for line in (tmp_path / "jobs.jsonl").open()]
    assert events == ["submitted", "doubted", "submitted", "collected"]
    assert [cost.id for cost in client.journal.costs()] == ["job2"]


@pytest.mark.parametrize("stuck", ["QUEUED", "DISPATCHED"])
def test_a_job_that_was_overtaken_is_doubted_soon(fake, connect, monkeypatch, stuck):
    monkeypatch.setattr(watch, "LOST_AFTER", 1.0)
    states(fake, {"job1": stuck})
    client = connect()
    took = {}

    def collect(key):
        began = time.monotonic()
        client.run(key, body)
        took[key] = time.monotonic() - began

    first = threading.Thread(target=collect, args=("a",))
    first.start()
    while fake.polled.count("job1") < 2:
        time.sleep(0.01)
    collect("b")
    first.join()
    assert took["b"] < 0.2
    assert took["a"] < {"QUEUED": 0.9, "DISPATCHED": 1.9}[stuck]  # alone it would be 3
    assert fake.submitted == 3


def test_jobs_that_wait_for_each_other_are_not_doubted(fake, connect):
    # One at a time, in the order in which they came; the last waits longer than one alone may.
    ends: list[float] = []

    def submit(n, headers):
        ends.append(max([time.monotonic(), *ends]) + 0.6)
        return 200, status("RECEIVED")

    def poll(job, n):
        left = ends[int(job.removeprefix("job")) - 1] - time.monotonic()
        return 200, (
            fake.completed() if left < 0 else status("RUNNING" if left < 0.6 else "QUEUED")
        )

    fake.submit, fake.poll = submit, poll
    client = connect(poll=0.01)
    threads = [threading.Thread(target=client.run, args=(key, body)) for key in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.submitted == 4


def test_the_first_result_wins_and_counts_once(fake, connect):
    # The doubted job ends after all, before the one in its place.
    states(fake, {"job1": [*["QUEUED"] * 300, "COMPLETED"], "job2": "RUNNING"})
    fake_poll = fake.poll
    fake.poll = lambda job, n: (
        (200, fake.completed()) if job == "job1" and fake.submitted == 2 else fake_poll(job, n)
    )
    client = connect()
    client.run("u", body)
    assert [cost.id for cost in client.journal.costs()] == ["job1"]
    # Both have ended now. A run that was killed before it stored the result collects one of them.
    states(fake, {})
    fake.polled.clear()
    again = connect()
    again.run("u", body)
    assert fake.submitted == 2
    assert fake.polled == ["job1"]
    assert len(again.journal.costs()) == 1


def test_a_lost_job_of_a_killed_client_is_found_out_by_the_next(fake, connect):
    connect().journal.submitted("u", "job7", 10)
    states(fake, {"job7": "QUEUED"})
    began = time.monotonic()
    assert "x" in connect().run("u", body)
    assert time.monotonic() - began < 3
    assert fake.submitted == 1


def test_a_copy_that_fails_leaves_the_job_that_was_doubted(fake, connect):
    evicted = status("ERROR", "Replica was evicted while processing your request.")
    asked = []

    def poll(job, n):
        asked.append(job)
        if job == "job2":
            return 200, evicted
        return 200, fake.completed() if asked[-2:] == ["job1", "job1"] and (
            "job2" in asked
        ) else status("QUEUED")

    fake.poll = poll
    client = connect()
    client.run("u", body)
    assert fake.submitted == 2
    assert [cost.id for cost in client.journal.costs()] == ["job1"]


class Silent:
    """A websocket on which nothing comes for a first job, and what comes is a result."""

    opened = 0

    def __init__(self, server, key, deadline):
        Silent.opened += 1
        self.session, self.number = "s", Silent.opened

    def receive(self, seconds):
        if self.number > 1:
            return status("COMPLETED", data=blob({"x": torch.arange(4)}))
        time.sleep(min(seconds, 0.05))
        return None

    def close(self):
        pass


def test_a_lost_job_on_a_websocket_is_submitted_again(fake, connect, monkeypatch, tmp_path):
    monkeypatch.setattr("confreg.places.ndif.client.Subscription", Silent)
    monkeypatch.setattr(Silent, "opened", 0)
    assert "x" in connect(blocking=True).run("u", body)
    assert fake.submitted == 2
    events = [json.loads(line)["event"] for line in (tmp_path / "jobs.jsonl").open()]
    assert events == ["submitted", "failed", "submitted", "collected"]


class Slow(Silent):
    """A websocket on which a job queues, then runs, longer than what a polled one may."""

    said = ("QUEUED", "RUNNING")

    def receive(self, seconds):
        self.began = getattr(self, "began", time.monotonic())
        now = time.monotonic() - self.began
        time.sleep(min(seconds, 0.05))
        if now > 0.6:
            return status("COMPLETED", data=blob({"x": torch.arange(4)}))
        said, self.last = self.said[now > 0.3], getattr(self, "last", None)
        if said == self.last:
            return None
        self.last = said
        return status(said)


def test_a_slow_job_on_a_websocket_keeps_its_place(fake, connect, monkeypatch):
    monkeypatch.setattr("confreg.places.ndif.client.Subscription", Slow)
    monkeypatch.setattr(watch, "LOST_AFTER", 0.02)
    assert "x" in connect(blocking=True).run("u", body)
    assert fake.submitted == 1


def test_copies_are_counted_too(fake, connect):
    states(fake, {f"job{i}": "QUEUED" for i in range(1, 9)})
    with pytest.raises(DeadlineExceeded):
        connect(deadline=4, retries=1).run("u", body)
    assert fake.submitted == 2


def test_a_server_that_was_away_is_no_sign_of_a_lost_job(fake, connect, monkeypatch):
    polls = iter([*[200] * 10, *[503] * 25, *[200] * 10])

    def poll(job, n):
        code = next(polls, None)
        if code == 503:
            return 503, {"detail": "reconnecting"}
        return 200, status("QUEUED") if code == 200 else fake.completed()

    fake.poll = poll
    connect(poll=0.01).run("u", body)
    assert fake.submitted == 1


@pytest.mark.parametrize("runtime", ["soon", -3.0, float("inf"), None])
def test_the_servers_clock_is_not_believed(fake, connect, runtime):
    fake.poll = lambda job, n: (200, fake.completed() | {"meta": {"runtime": runtime}})
    client = connect()
    client.run("u", body)
    (cost,) = client.journal.costs()
    assert math.isnan(cost.seconds)


def test_clients_of_two_models_share_a_journal(fake, connect, structure, tmp_path, monkeypatch):
    journal = Journal(tmp_path / "jobs.jsonl")
    profile = NdifProfile(kind="ndif", name="t", host=fake.url, trusted=True, poll=0.02)
    clients = [Client(profile, structure, journal)]
    monkeypatch.setattr("confreg.places.ndif.client.identify", lambda *_: model_key("lab/other"))
    clients.append(Client(profile, structure, journal))
    assert clients[0].mark != clients[1].mark
    for each in clients:
        each.run(f"u/{each.mark}-0", body)
    assert fake.submitted == 2
    assert len(journal.keys("u/")) == 2
    clients[0].stored("u")
    assert journal.keys("u/") == []
    for each in clients:
        each.server.close()


def test_two_journals_of_one_file_mix_no_lines(tmp_path):
    path = tmp_path / "j.jsonl"
    journals = [Journal(path), Journal(path)]

    def write(which):
        for i in range(50):
            journals[which].submitted(f"{which}.{i}", f"job{which}.{i}", i)

    threads = [threading.Thread(target=write, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 200
    assert len(Journal(path).keys("")) == 100


def test_a_line_of_a_journal_that_is_not_one_of_ours_is_passed_over(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal(path).submitted("a", "job1", 5)
    with path.open("a") as file:
        file.write('[1]\n{"event": "submitted", "key": "b"}\n7\n"text"\n')
    assert Journal(path).keys("") == ["a"]


def test_a_package_that_is_shipped_ships_what_lies_below_it(connect):
    import cloudpickle.cloudpickle as by_value
    from confreg.recipes import entropy_neurons

    from confreg.effects.engines.series import moments

    connect()
    assert {"confreg.effects", "confreg.recipes", "confreg.steps"} <= set(SHIPPED)
    assert by_value._is_registered_pickle_by_value(moments)
    assert by_value._is_registered_pickle_by_value(entropy_neurons)
    assert not by_value._is_registered_pickle_by_value(models)
