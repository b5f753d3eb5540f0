"""The command line, by its exit statuses and its sentences."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

import confreg
from confreg import cli
from confreg.cli.tables import print_top
from confreg.recipe import find


def call(*arguments: str) -> int:
    """Exit status of a command."""
    try:
        cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def common(checkpoint, tmp_path, words):
    (tmp_path / "text.txt").write_text("\n".join(words))
    return (
        "--model", str(checkpoint("gpt2")), "--text", str(tmp_path / "text.txt"),
        "--sequence-length", "16", "--max-tokens", "64", "--neurons", "2:0-5",
    )  # fmt: skip


def test_run_show_report_netcdf(common, tmp_path, capsys):
    out = str(tmp_path / "o.zarr")
    assert call("run", "entropy_neurons", *common, "--out", out, "-p", "ablation=zero") == 0
    assert "6 of 6 neurons" in capsys.readouterr().out
    assert confreg.open(out).attrs["command_line"].startswith("confreg run entropy_neurons --model")
    assert call("show", out, "--by", "w_out_norm", "-n", "2") == 0
    assert "2 of 6 neurons" in capsys.readouterr().out
    assert call("report", out) == 0
    assert (tmp_path / "o.html").read_text().startswith("<!doctype html>")
    assert call("netcdf", out) == 0
    assert confreg.open(tmp_path / "o.nc").sizes["neuron"] == 6


def test_plan_runs_nothing(common, tmp_path, capsys):
    assert call("plan", "entropy_neurons", *common, "--out", str(tmp_path / "o.zarr")) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "1 × 1 unit of up to 6 neurons × 64 tokens" in said
    assert "each token 1 time through the model" in said
    assert "on disk" in said
    assert not (tmp_path / "o.zarr").exists()


def test_lists(capsys):
    assert call("recipes") == 0
    said = capsys.readouterr().out
    assert "entropy_neurons" in said
    assert "-p null_dims: int | None = None" in said
    assert call("models") == 0
    assert "gpt_neox" in capsys.readouterr().out
    assert call("doctor") == 0
    assert "nnsight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "no_such"], "There is no recipe 'no_such'. There are: "),
        (["run", "no/such.py"], "There is no recipe file"),
        (["run", "entropy_neurons", "-p", "colour=red"], "no parameter 'colour'. It takes: layer"),
        (["run", "entropy_neurons", "-p", "layer=deep"], "must be int, not 'deep'"),
        (["run", "entropy_neurons", "-p", "layer"], "-p takes name=value"),
        (["run", "entropy_neurons", "-p", "ablation=often"], "ablation='often' is not understood"),
        (["run", "entropy_neurons", "-p", "layer=9"], "no layer 9: the model has layers 0 to 2"),
        (["run", "entropy_neurons", "--effects", "joy"], "has no effect 'joy'. It has: loss_total"),
        (["run", "entropy_neurons", "--neurons", "2:0-99"], "has neurons 0 to 47"),
        (["run", "entropy_neurons", "--neurons", "x"], "'x' is not understood"),
        (["run", "entropy_neurons", "--profile", "moon"], "There is no profile 'moon'"),
        (["run", "entropy_neurons", "-P", "speed=9"], "there is no setting 'speed'"),
        (["run", "entropy_neurons", "--memory", "lots"], "such as 2GB"),
        (["run", "entropy_neurons", "--tolerance", "0"], "--tolerance is above 0"),
        (["run", "entropy_neurons", "--text", "/no/such/file"], "/no/such/file"),
        (
            ["run", "entropy_neurons", "--engine", "exact", "--neurons", "0:1"],
            "use --engine forward",
        ),
        (["run", "entropy_neurons", "--sequence-length", "4000"], "has positions for"),
        (["show", "nothing.zarr"], "There is no store 'nothing.zarr'"),
        (["report", "nothing.zarr"], "There is no store 'nothing.zarr'"),
    ],
)
def test_a_mistake_is_a_sentence(common, tmp_path, capsys, arguments, sentence):
    out = tmp_path / "o.zarr"
    line = list(arguments)
    if line[0] == "run":
        given = dict(zip(common[::2], common[1::2]))
        line += [x for k, v in given.items() if k not in line for x in (k, v)]
        line += ["--out", str(out)]
    assert call(*line) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not out.exists()


def sets_of(deviations=3, random_sets=5):
    """Sets as ``group_ablation`` stores them: one chosen, at several ablation values."""
    count = deviations * (1 + random_sets)
    first = np.arange(count) < deviations
    names = [f"{'chosen' if one else 'random'}-{at}" for at, one in enumerate(first)]
    return xr.Dataset(
        {
            "te": ("set", np.linspace(2e3, 1.0, count)),
            "de": ("set", np.full(count, 0.12345)),
            "effect_abs_mean": (("set", "effect"), np.full((count, 2), -1.2345e-4)),
            "effect_mean": (("set", "effect"), np.full((count, 2), -1.2345e-4)),
            "p_random": (("set", "effect"), np.full((count, 2), 1 / (1 + random_sets))),
            "error_max": ((), np.nan),
            "error_sampled_pairs": ((), 1160.0),
        },
        {
            "set": np.array(names, object),
            "effect": np.array(["loss_total", "entropy_total"], object),
            "set_kind": ("set", np.where(first, "chosen", "random").astype(object)),
            "set_control": ("set", np.zeros(count, int)),
            "set_deviation": ("set", np.arange(count) % deviations),
        },
    )


@pytest.mark.parametrize("width", [50, 120])
def test_a_table_shows_whole_numbers_and_names_what_has_no_room(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    ds = sets_of()
    print_top(ds)
    said = capsys.readouterr().out
    lines = [line.rstrip() for line in said.splitlines()]
    table = lines[: next(at for at, line in enumerate(lines) if line.startswith("TE, DE"))]
    further = "".join(line for line in table if line.startswith("Further columns"))
    assert max(len(line) for line in table if line != further) <= width
    shown = " ".join(line for line in table if line != further)
    assert "…" not in shown
    assert "2,000" in shown
    for heading in ("p(loss)", "p(entropy)"):
        assert (heading in shown) != (heading in further)
    assert bool(further) == (width == 50)


def test_the_least_p_counts_the_controls_of_one_ablation_value(capsys):
    """A set at three values is held against five random sets at each, not against fifteen."""
    print_top(sets_of(deviations=3, random_sets=5))
    said = capsys.readouterr().out
    assert "1/6 at the least" in said
    assert "1,160" in said
    assert "error max" not in said  # of no pair


def test_help_is_quick_and_imports_little():
    code = "import sys, confreg.cli; assert not {'torch', 'xarray', 'nnsight'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    started = time.monotonic()
    said = subprocess.run(
        [sys.executable, "-m", "confreg.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "confreg run entropy_neurons" in said.stdout
    assert (
        time.monotonic() - started < 10
    )  # the benchmark says how quick; this, that it is not slow


def test_every_option_says_what_it_is_and_none_that_its_default_is_none():
    parser = importlib.import_module("confreg.cli.main")._parser()  # cli.main is the function
    (commands,) = (each for each in parser._actions if each.dest == "command")
    for name, command in commands.choices.items():
        for option in command._actions:
            assert option.help or not option.option_strings, (name, option.option_strings)
        assert "None" not in command.format_help(), name
    assert "--out is then a folder" in " ".join(commands.choices["run"].format_help().split())


def test_a_user_s_recipe_with_a_helper_beside_it(common, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    source = find("entropy_neurons").path.read_text()
    source = source.replace("def entropy_neurons", "def my_recipe")
    (folder / "my_helper.py").write_text("LAYER = 2\n")
    (folder / "my_recipe.py").write_text(
        source.replace("import nnsight", "import my_helper\nimport nnsight").replace(
            "layer: int = -1", "layer: int = my_helper.LAYER"
        )
    )
    recipe = str(folder / "my_recipe.py")
    assert call("run", recipe, *common, "--out", str(tmp_path / "o.zarr")) == 0
    assert confreg.open(tmp_path / "o.zarr").attrs["recipe"] == "my_recipe"
    (folder / "broken.py").write_text("import no_such_module")
    capsys.readouterr()
    assert call("run", str(folder / "broken.py"), *common) == 2
    assert "does not import: ModuleNotFoundError" in capsys.readouterr().err


def test_pages_and_files_keep_a_store_s_whole_name(common, tmp_path, capsys):
    out = tmp_path / "qwen2.5-step"
    assert call("run", "entropy_neurons", *common, "--out", str(out), "--quiet") == 0
    assert call("report", str(out)) == 0
    assert call("netcdf", str(out)) == 0
    assert (tmp_path / "qwen2.5-step.html").is_file()
    assert (tmp_path / "qwen2.5-step.nc").is_file()


def test_a_url_is_no_folder(common, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("run", "entropy_neurons", *common, "--out", "s3://bucket/y.zarr") == 2
    assert "a folder of this machine" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()
    assert call("run", "entropy_neurons", *common, "--out", f"file://{tmp_path}/u.zarr") == 0
    assert (tmp_path / "u.zarr").is_dir()


def test_a_terminal_without_utf_8_is_no_damage(common, tmp_path):
    out = tmp_path / "o.zarr"
    assert call("run", "entropy_neurons", *common, "--out", str(out), "--quiet") == 0
    done = subprocess.run(
        [sys.executable, "-m", "confreg.cli", "show", str(out)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "neurons" in done.stdout
