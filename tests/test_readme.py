"""Every command of the README, as it is written there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SMALL = {"--max-tokens": "64", "--neurons": "random:8", "--sequence-length": "32"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def lines() -> list[str]:
    found = [line.strip() for block in blocks("sh") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in found if line and not line.startswith("#")]


def confreg_commands() -> list[str]:
    return [line for line in lines() if line.startswith("confreg ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint):
    """A folder in which the commands run, one after the other."""
    here = tmp_path_factory.mktemp("readme")
    (here / "my_text.txt").write_text("The cat sat on the mat. " * 40)
    (here / "my_recipe.py").write_text(
        (Path(__file__).parent.parent / "recipes" / "entropy_neurons.py").read_text()
    )
    return here


def program() -> list[str]:
    return [sys.executable, "-m", "confreg.cli"]


def small(words: list[str]) -> list[str]:
    """The same command on less text and fewer neurons."""
    if words[0] not in ("run", "plan"):
        return words
    less = [x for k, v in SMALL.items() if k not in words for x in (k, v)]
    return [*words, *less, *(["--quiet"] if words[0] == "run" else [])]


def test_the_readme_has_its_two_commands_first():
    assert lines()[:2] == ["make demo", "make test"]


@pytest.mark.model
@pytest.mark.parametrize("line", confreg_commands())
def test_a_command(line, folder, monkeypatch):
    words = shlex.split(line.removeprefix("confreg "))
    remote = any(w.startswith("ndif") for w in words)
    hub = any("/" in w for i, w in enumerate(words) if words[i - 1] == "--model")
    if remote or hub:
        pytest.skip("needs the Hub or a server; tests/test_ndif_* run such commands")
    run = subprocess.run(
        [*program(), *small(words)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


@pytest.mark.model
def test_the_python_example(folder):
    example = next(b for b in blocks("python") if "confreg.run" in b)
    assert len(example.strip().splitlines()) <= 12
    example = example.replace("confreg.run(", "confreg.run(max_tokens=64, neurons='random:8', ")
    script = folder / "example.py"
    script.write_text(example.replace('"entropy_neurons",', 'recipe="entropy_neurons",'))
    run = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_recipe_in_the_readme_is_the_recipe():
    source = (Path(__file__).parent.parent / "recipes" / "entropy_neurons.py").read_text()
    shown = next(b for b in blocks("python") if "@recipe" in b)
    assert shown.strip() in source
