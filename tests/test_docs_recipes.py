"""Everything in docs/recipes.md runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import confreg
from confreg import effects as fx

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
SMALLEST, DERIVED, MEASURED, EDITS, WRITES = BLOCKS


def own(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(text)
    return path


def measured(recipe, checkpoint, words, tmp_path, **options):
    return confreg.run(
        recipe, model=str(checkpoint("llama")), text=words, sequence_length=16, max_tokens=64,
        out=tmp_path / "o.zarr", progress=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("neurons", ["2:0-7", "0.3,1:2-4"])
def test_the_smallest_recipe(checkpoint, words, tmp_path, neurons):
    recipe = own(tmp_path, "total_activation", SMALLEST)
    ds = measured(recipe, checkpoint, words, tmp_path, neurons=neurons, unit_tokens=16)
    usual = confreg.run(
        "entropy_neurons", model=str(checkpoint("llama")), text=words, sequence_length=16,
        max_tokens=64, out=tmp_path / "e.zarr", progress=False, neurons=neurons, activations=True,
    )  # fmt: skip
    np.testing.assert_allclose(ds["total"], usual["activation"].sum("token"), rtol=1e-5, atol=1e-5)
    assert ds["total"].attrs["long_name"] == "sum of activations"


def test_its_commands_run(checkpoint, words, tmp_path):
    own(tmp_path, "total_activation", SMALLEST)
    (tmp_path / "text.txt").write_text("\n".join(words))
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    tiny = f"--model {checkpoint('llama')} --text text.txt --sequence-length 16"
    for line in commands.strip().splitlines():
        line = line.partition("#")[0].replace("29:", "2:")
        if line.split()[1] in ("run", "plan"):
            line += f" {tiny}"
        words_ = line.split()
        done = subprocess.run(
            [sys.executable, "-m", "confreg.cli", *words_[1:]],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "runs" / "total.html").stat().st_size > 100_000


def test_a_derivation_behind_it(checkpoint, words, tmp_path):
    text = SMALLEST.replace("    return Step(", "    step = Step(")
    head, _, trace = text.partition("\n\n\ndef activations")
    text = f"{head}\n    return [step, mean]\n\n\n{DERIVED}\n\ndef activations{trace}"
    ds = measured(own(tmp_path, "mean", text), checkpoint, words, tmp_path, neurons="2:0-7")
    np.testing.assert_allclose(ds["mean"], ds["total"] / ds.sizes["token"], rtol=1e-6)


@pytest.mark.parametrize("neurons", ["2:0-3", "1:0-3"])
def test_an_effect_of_one_s_own(checkpoint, words, tmp_path, neurons):
    ds = measured(own(tmp_path, "surer", MEASURED), checkpoint, words, tmp_path, neurons=neurons)
    assert ds["effect"].values.tolist() == ["probability_total", "probability_direct"]
    keep = ds["keep"].values
    # The loss of a token is −log of its probability.
    np.testing.assert_allclose(ds["probability"][keep], np.exp(-ds["loss"][keep]), rtol=1e-4)
    assert np.abs(ds["effects"].sel(effect="probability_total")[:, keep]).max() > 1e-5


def test_edits_of_one_s_own_do_what_they_say_they_write():
    space: dict = {}
    exec(EDITS, space)
    exec(WRITES, space)
    direction = torch.randn(8, generator=torch.Generator().manual_seed(0))
    push = space["Push"](torch.tensor([1.0, -2.0]), direction)
    residual = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    residual[1:] = residual[0]
    edited = push.apply(residual, 2)
    delta, w = space["writes"](push, None, residual[0])
    for j in range(2):
        expected = residual[0] + delta[j][:, None] * w[j]
        torch.testing.assert_close(edited[j + 1], expected)
    torch.testing.assert_close(edited[0], residual[0])


def test_what_the_page_links_to_is_there():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (Path(__file__).parent.parent / "docs" / link).exists(), link
    assert callable(fx.pick)
