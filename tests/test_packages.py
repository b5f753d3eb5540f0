"""What docs say of packages that bring recipes and architectures, with one made and installed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import zoo
from test_models_verify import UNKNOWN, unknown

import confreg
from confreg.errors import ConfregError
from confreg.models import own

DOCS = Path(__file__).parent.parent / "docs"
RECIPES, ROWS = ((DOCS / f"{name}.md").read_text() for name in ("recipes", "architectures"))
SMALLEST = re.findall(r"```python\n(.*?)```", RECIPES, flags=re.S)[0]
(PYPROJECT,) = re.findall(r"```toml\n(.*?)```", RECIPES, flags=re.S)
LIKE, WHOLE, ENTRY = re.findall(r"```toml\n(.*?)```", ROWS, flags=re.S)
(ROW,) = re.findall(r"```python\n(.*?)```", ROWS, flags=re.S)


def run(*command: object, **options) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An environment with a package of one's own, that sees this one's packages."""
    folder = tmp_path_factory.mktemp("packages")
    source, venv = folder / "source", folder / "venv"
    (source / "confreg_scales").mkdir(parents=True)
    (source / "confreg_doge").mkdir()
    pyproject = PYPROJECT.replace('packages = ["confreg_scales"]',
                                  'packages = ["confreg_scales", "confreg_doge"]')  # fmt: skip
    (source / "pyproject.toml").write_text(pyproject + "\n" + ENTRY)
    (source / "confreg_scales" / "__init__.py").write_text(SMALLEST)
    (source / "confreg_doge" / "__init__.py").write_text("")
    (source / "confreg_doge" / "rows.py").write_text(ROW)
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    (site,) = (venv / "lib").glob("python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, source)
    seen = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in seen]
    (site / "others.pth").write_text("\n".join(lines))
    return venv


@pytest.fixture
def command(home, tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"CONFREG_ARCHITECTURES": str(tmp_path / "rows"), "COLUMNS": "80", "TERM": "dumb"}

    def call(*words: object) -> str:
        return run(home / "bin" / "python", "-m", "confreg.cli", *words, cwd=tmp_path, env=env)

    return call


@pytest.mark.slow
def test_a_package_s_recipe_and_row_are_found_by_name(command, tmp_path, words):
    listed = command("recipes")
    assert "total_activation  Total activation: how active is every neuron" in listed
    said = command("doctor")
    assert "own architectures" in said
    assert "total_activation" in said
    network, tokenizer = unknown()
    folder = tmp_path / UNKNOWN
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (tmp_path / "text.txt").write_text("\n".join(words))
    command(
        "run", "total_activation", "--model", folder, "--text", "text.txt",
        "--sequence-length", "16", "--max-tokens", "64", "--neurons", "2:0-7", "--out", "o.zarr",
    )  # fmt: skip
    ds = confreg.open(tmp_path / "o.zarr")
    assert ds.attrs["verified_row"].startswith("package confreg-scales, verified to ")
    assert np.isfinite(ds["total"]).all()


@pytest.mark.parametrize("text", [LIKE, WHOLE])
def test_a_file_is_a_row(tmp_path, monkeypatch, text, words):
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    (tmp_path / "mine.toml").write_text(text)
    row = own.rows()[UNKNOWN]
    assert (row.title, row.origin) == ("Doge", str(tmp_path / "mine.toml"))
    model = confreg.models.Model.wrap(*unknown())
    assert model.description.row == row
    ds = confreg.run(
        "entropy_neurons", model=model, text=words, sequence_length=12, max_tokens=24,
        neurons="2:0-5", progress=False, out=tmp_path / "o.zarr",
    )  # fmt: skip
    assert ds.attrs["verified_row"].startswith(row.origin)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_type = ", "is not valid TOML"),
        ('model_type = "doge"\nlayer = "model.layers"', "layer: Extra inputs are not permitted"),
        ('model_type = "doge"\nlike = "lama"', "no architecture 'lama' to be like"),
        (
            'model_type = "doge"\nlayers = "model.layers"',
            "does not say down_projection, final_norm",
        ),
        ('title = "Doge"', "model_type: Field required"),
    ],
)
def test_a_file_that_is_no_row_is_refused(tmp_path, monkeypatch, text, said):
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfregError, match=said):
        own.rows()


def test_a_row_of_one_s_own_comes_before_the_table_s(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    (tmp_path / "a.toml").write_text('model_type = "llama"\nlike = "llama"\ntitle = "Mine"\n')
    assert confreg.models.Model.wrap(*zoo.tiny("llama")).description.row.title == "Mine"


class Broken:
    """An entry point of a package that is not well."""

    name, value, module = "total_activation", "confreg_scales:total_activation", "confreg_scales"
    dist = None

    def __init__(self, gives):
        self.gives = gives

    def load(self):
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.parametrize(
    ("gives", "said"), [(ImportError("no such thing"), "does not load"), (3, "gives 3, where")]
)
def test_a_package_that_is_broken_is_named(monkeypatch, capsys, gives, said):
    from confreg.cli import main

    recipe = importlib.import_module("confreg.recipe")  # confreg.recipe is the decorator

    def broken(group):
        return [Broken(gives)]

    monkeypatch.setattr(recipe, "entry_points", broken)
    monkeypatch.setattr(own, "entry_points", broken)
    with pytest.raises(ConfregError, match=said):
        recipe.find("total_activation")
    with pytest.raises(ConfregError, match=said):
        own.rows()
    main(["recipes"])
    listed = capsys.readouterr().out
    assert said in listed
    assert "entropy_neurons" in listed


def test_the_docs_entry_point_is_toml():
    assert tomllib.loads(ENTRY)["project"]["entry-points"]["confreg.architectures"]
