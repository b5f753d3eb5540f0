"""What a run shows on the way."""

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
