"""What a run shows on the way."""

import time

from confreg import progress


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 40.0, 40.0, 70.0, 70.0, 75.0, 75.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.Progress().bar("measuring", 4000, "tokens") as advance:
        advance(1000)  # found by a resumed run
        advance(1000)
        advance(500)
        advance(1500)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "measuring: 2,000 of 4,000 tokens in 0:00:40, 0:00:40 left",
        "measuring: 2,500 of 4,000 tokens in 0:01:10, 0:01:30 left",
        "measuring: 4,000 of 4,000 tokens in 0:01:15",
    ]


def test_a_failed_run_says_where_it_stood(capsys):
    try:
        with progress.Progress().bar("measuring", 10, "tokens") as advance:
            advance(3)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert "measuring: 3 of 10 tokens" in capsys.readouterr().err


def test_what_takes_long_is_said_once_it_does(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    with progress.Progress().heard():
        with progress.waiting("reading a large file"):
            time.sleep(0.3)
        with progress.waiting("reading a small file"):
            pass
    time.sleep(0.2)
    assert capsys.readouterr().err == "confreg: reading a large file ...\n"


def test_nothing_is_said_unasked(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.waiting("reading"):
        time.sleep(0.1)
    with progress.Progress(show=False).heard(), progress.waiting("reading"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_step_in_a_log_is_a_line_once_it_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    with progress.Progress().step("loading m"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "confreg: loading m ...\n"
