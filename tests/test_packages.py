"""What docs say of packages that bring recipes and architectures, with one made and installed."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zoo
from test_models_verify import UNKNOWN, unknown

import confreg
from confreg.cli import main
from confreg.errors import ConfregError
from confreg.models import classes, lookup, named, own

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
        (
            'model_type = "doge"\nlayer = "model.layers"',
            "layer = 'model.layers': Extra inputs are not permitted",
        ),
        ('model_type = "doge"\nlike = "lama"', "no architecture 'lama' to be like"),
        (
            'model_type = "doge"\nlayers = "model.layers"',
            "does not say down_projection, final_norm",
        ),
        ('title = "Doge"', "model_type: Field required"),
        (f"{LIKE}eps = []", r"eps = \[\]: Input should be"),
    ],
)
def test_a_file_that_is_no_row_is_refused(tmp_path, monkeypatch, text, said):
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfregError, match=said):
        own.rows()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('eps = "no_such"', "is no attribute of the configuration (doge)"),
        ('scale = "model_type"', "is 'doge', which is no number"),
        ("multiplier = nan", "is nan, which is no number"),
        ('softcap = "no_cap"', "is no attribute of the configuration"),
        ("width = 40", "is not how many numbers mlp.down_proj takes, which is 48"),
        ('width = "hidden_size"', "is not how many numbers mlp.down_proj takes, which is 48"),
        ('layers = "model.layerz"', "names 'layerz', which the model has not there, but "),
        ('layers = "model.layers.0"', "is no list of 3 layers"),
        ('final_norm = "model.config"', "names 'config', which the model has not there"),
        ('final_norm = "lm_head"', "is a matrix, and no norm"),
        ('unembedding = "model.embed_tokens"', "is no matrix"),
        ('unembedding = "model.layers.0.mlp.down_proj"', "takes 48 numbers and gives 32, and not"),
        ('down_projection = "mlp.down"', "names 'down', which layer 0 has not there, but "),
        ('down_projection = "mlp.up_proj"', "takes 32 numbers and gives 48, and not 48 and 32"),
        ('down_projection = ""', "names '', which layer 0 has not there, but "),
        ('up = "mlp.upx"', "names 'upx', which layer 0 has not there, but gate_proj, up_proj, "),
        ('gate = "mlp.down_proj"', "takes 48 numbers and gives 32, and not 32 and 48"),
        ('norm_before = "norm"', "names 'norm', which layer 0 has not there"),
        ('norm_before = "mlp.up_proj"', "is a matrix, and no norm"),
        ('post_norm = "no_norm"', "names 'no_norm', which layer 2 has not there"),
        ('scaled_sum = "no_norm"', "names 'no_norm', which layer 2 has not there"),
        ('like = "mixtral"', "experts = 'num_local_experts' is no attribute"),
        ('like = "falcon"', "norm_before cannot be found out: "),
    ],
)
def test_a_file_that_names_what_is_not_there_is_refused(tmp_path, monkeypatch, line, said):
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    kept = "" if line.startswith("like") else 'like = "llama"\nno_heads = "none"\n'
    (tmp_path / "mine.toml").write_text(f'model_type = "doge"\n{kept}{line}')
    config = unknown()[0].config
    with pytest.raises(ConfregError) as found:
        lookup.find(config, "tiny", lambda: classes.weightless(config))
    words = str(found.value)
    assert words.startswith(f"{tmp_path / 'mine.toml'}: ")
    assert said in words
    if not line.startswith("like"):
        key, _, value = line.partition(" = ")
        assert f"{key} = {value}".replace('"', "'") in words


@pytest.mark.parametrize("command", ["verify", "run"])
def test_such_a_file_ends_a_command_with_a_sentence(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    (tmp_path / "mine.toml").write_text('model_type = "llama"\nlike = "llama"\nwidth = 40\n')
    words = {"verify": [], "run": ["census", "--out", str(tmp_path / "o.zarr"), "--model"]}[command]
    with pytest.raises(SystemExit) as ended:
        main([command, *words, str(zoo.save("llama", tmp_path / "model"))])
    assert ended.value.code == 2
    assert f"{tmp_path / 'mine.toml'}: width = 40 is not how many" in capsys.readouterr().err


def test_what_is_tested_names_what_is_there():
    for name in {**zoo.CONFIGS, **zoo.EXPERTS, **zoo.AROUND_EXPERTS}:
        config = zoo.config(name)
        row = lookup.find(config, "tiny")
        named.check(replace(row, origin="mine"), lookup.text_of(config), classes.weightless(config))


def test_an_empty_path_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFREG_ARCHITECTURES", str(tmp_path))
    empty = ("post_norm", "softcap", "norm_before", "attention_out", "up", "gate")
    lines = "".join(f'{key} = ""\n' for key in empty)
    (tmp_path / "mine.toml").write_text(f'model_type = "doge"\nlike = "gemma2"\n{lines}')
    row = own.rows()["doge"]
    assert [getattr(row, key) for key in empty] == [None, None, None, None, "", ""]
    config = unknown()[0].config
    assert lookup.find(config, "tiny", lambda: classes.weightless(config)) == row


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
