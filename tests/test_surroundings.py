"""What is set around a run changes no number, and is as it was when the run has ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading

import numpy as np
import pytest
import torch
import zoo

import confreg
from confreg import ConfregError
from confreg.models import Model

NAMES = ("effects", "te", "loss", "ablation_value", "logit_var", "null_fraction")


def run(model, words, out, **options):
    return confreg.run(
        "entropy_neurons", model=model, text=words, out=out, sequence_length=16, max_tokens=64,
        neurons="2:0-5", progress=False, **options,
    ).load()  # fmt: skip


@contextlib.contextmanager
def default_dtype(dtype):
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(count):
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


AROUND = {
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "one thread": lambda: threads(1),
}


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


@pytest.fixture(scope="module")
def usual(checkpoint, words, tmp_path_factory):
    return run(str(checkpoint("llama")), words, tmp_path_factory.mktemp("usual") / "a.zarr")


@pytest.mark.parametrize("engine", ["series", "forward"])
@pytest.mark.parametrize("around", AROUND)
def test_numbers_are_the_same_and_the_setting_stays(
    usual, checkpoint, words, tmp_path, around, engine
):
    with AROUND[around]():
        before = state()
        mine = run(str(checkpoint("llama")), words, tmp_path / "a.zarr", engine=engine)
        assert state() == before
    for name in NAMES:
        np.testing.assert_allclose(mine[name], usual[name], atol=1e-5, rtol=1e-5, err_msg=name)


def test_a_run_that_fails_leaves_settings_too(checkpoint, words, tmp_path):
    with torch.inference_mode(), default_dtype(torch.float64):
        before = state()
        with pytest.raises(ConfregError):
            run(str(checkpoint("llama")), words, tmp_path / "a.zarr", layer=9)
        assert state() == before


@pytest.mark.parametrize("around", ["inference mode", "autocast", "float64 by default"])
def test_a_model_that_was_made_there_too(words, tmp_path, around):
    network, tokenizer = zoo.tiny("llama")
    plain = run(Model.wrap(network, tokenizer, name="tiny"), words, tmp_path / "a.zarr")
    with AROUND[around]():
        copied, tokenizer = zoo.tiny("llama")
        mine = run(Model.wrap(copied, tokenizer, name="tiny"), words, tmp_path / "b.zarr")
    np.testing.assert_allclose(mine["effects"], plain["effects"], atol=1e-5)


def test_threads_may_share_a_model(usual, words, tmp_path):
    model, found = Model.wrap(*zoo.tiny("llama"), name="tiny"), {}

    def go(number):
        try:
            found[number] = run(model, words, tmp_path / f"{number}.zarr", engine="forward")
        except BaseException as error:
            found[number] = error

    workers = [threading.Thread(target=go, args=(number,)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    for number in range(3):
        assert not isinstance(found[number], BaseException), found[number]
        np.testing.assert_allclose(found[number]["effects"], usual["effects"], atol=1e-5)


def _in_a_fork(folder, words, out, said):
    try:
        run(folder, words, out)
    except BaseException as error:
        said.put(str(error))
    else:
        said.put("it ran")


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_a_fork_is_told_at_once(usual, checkpoint, words, tmp_path):
    forks = multiprocessing.get_context("fork")
    said = forks.Queue()
    worker = forks.Process(
        target=_in_a_fork, args=(str(checkpoint("llama")), words, tmp_path / "f.zarr", said)
    )
    worker.start()
    assert "get_context('spawn')" in said.get(timeout=60)
    worker.join(30)
    assert not (tmp_path / "f.zarr").exists()
