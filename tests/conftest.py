"""What every test file shares."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

# Before torch is imported: tiny matrices gain nothing from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import zoo

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

EVERYTHING = bool(os.environ.get("CONFREG_TEST_EVERYTHING"))


def need(program: str) -> None:
    """Skip where a system program is missing, or fail where nothing may be skipped."""
    if shutil.which(program) is None:
        message = f"{program} is not installed"
        if EVERYTHING:
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """``checkpoint("llama")``: folder of a tiny random model on disk, made once."""
    made: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp("models") / architecture
            zoo.save(architecture, made[architecture])
        return made[architecture]

    return get


@pytest.fixture(scope="session")
def words() -> list[str]:
    """Documents in the tiny tokenizer's language."""
    import random

    draw = random.Random(0)
    return [
        " ".join(f"w{draw.randrange(90)}" for _ in range(draw.randrange(10, 40))) for _ in range(12)
    ]
