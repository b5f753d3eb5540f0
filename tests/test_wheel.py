"""The wheel, installed into an empty environment, has the recipes and the profiles and runs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object, **options) -> str:
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_what_is_in_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for recipe in (ROOT / "recipes").glob("*.py"):
        assert f"confreg/recipes/{recipe.name}" in names
    for profile in (ROOT / "remote_conf").glob("*.toml"):
        assert f"confreg/remote_conf/{profile.name}" in names
    for source in (ROOT / "src" / "confreg").rglob("*"):
        if source.suffix in {".py", ".j2"}:
            assert str(source.relative_to(ROOT / "src")) in names
    assert not any("test" in name.lower() for name in names)


@pytest.mark.slow
def test_it_runs_in_an_empty_environment(wheel, tmp_path, checkpoint, words):
    home = tmp_path / "venv"
    run(sys.executable, "-m", "venv", home)
    run(home / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    (tmp_path / "text.txt").write_text("\n".join(words))
    out = run(
        home / "bin" / "confreg", "run", "entropy_neurons", "--model", checkpoint("llama"),
        "--text", "text.txt", "--sequence-length", "16", "--max-tokens", "48", "--out", "o.zarr",
        cwd=tmp_path, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert "48 neurons" in out
    run(home / "bin" / "confreg", "report", "o.zarr", cwd=tmp_path)
    assert (tmp_path / "o.html").stat().st_size > 1e6
    profiles = run(home / "bin" / "confreg", "doctor", cwd=tmp_path)
    assert "offload" in profiles
