"""What is looked at before a job is paid for."""

from __future__ import annotations

import pytest
from fake_ndif import KEY, FakeNdif, blob, status

import confreg
from confreg.errors import ConfregError
from confreg.places.ndif import check, http
from confreg.places.ndif.identity import model_key
from confreg.places.profiles import NdifProfile


@pytest.fixture
def fake(monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with FakeNdif() as server:
        yield server


def profile(fake: FakeNdif, **settings) -> NdifProfile:
    settings = {"host": fake.url, "trusted": True, "dtype": "float32", **settings}
    return NdifProfile(kind="ndif", name="test", **settings)


def look(profile: NdifProfile, model: str) -> dict[str, tuple[bool, str]]:
    return {c.name: (c.ok, c.sentence) for c in check.check(profile, model)}


@pytest.fixture
def model(checkpoint) -> str:
    return str(checkpoint("llama"))


def deploy(fake: FakeNdif, model: str, **more) -> None:
    known = {"repo_id": model, "revision": None, "application_state": "RUNNING"}
    fake.deployments = {"a": {**known, "dtype": "float32", "model_key": model_key(model), **more}}


def test_all_is_well(fake, model):
    deploy(fake, model)
    found = look(profile(fake), model)
    assert all(ok for ok, _ in found.values()), found
    assert found[model] == (True, "runs there in float32, on 1 replica")
    assert {"server", "key", "nnsight", "torch", "transformers", "python"} <= found.keys()


def test_a_model_that_is_not_deployed_can_be(fake, model):
    ok, sentence = look(profile(fake), model)[model]
    assert ok
    assert "deploys it" in sentence


def test_another_dtype(fake, model):
    deploy(fake, model, dtype="bfloat16")
    ok, sentence = look(profile(fake), model)[model]
    assert not ok
    assert "bfloat16" in sentence
    assert "float32" in sentence


@pytest.mark.parametrize(
    ("package", "there", "ok", "meaning"),
    [
        ("nnsight", "0.8.9", True, "understand each other"),
        ("nnsight", "0.7.3", False, "may not be read"),
        ("transformers", "4.57.1", False, "may have other modules"),
        ("transformers", "5.24.0", True, "the same in both, as tests of each show"),
        ("transformers", "5.99.0", True, "untested; a request"),
        ("torch", "2.99.0+cu128", True, "may differ"),
    ],
)
def test_versions_and_what_a_difference_means(fake, model, package, there, ok, meaning):
    fake.env["packages"][package] = there
    found = look(profile(fake), model)[package]
    assert found[0] == ok
    assert there in found[1]
    assert meaning in found[1]


LAYER = {
    "": "LlamaDecoderLayer",
    ".self_attn.o_proj": "Linear",
    ".mlp.gate_proj": "Linear",
    ".mlp.up_proj": "Linear",
    ".mlp.down_proj": "Linear",
    ".post_attention_layernorm": "LlamaRMSNorm",
}
THERE = {f"model.layers.{i}{path}": kind for i in range(3) for path, kind in LAYER.items()}
THERE |= {"model.norm": "LlamaRMSNorm", "lm_head": "Linear"}


def ask(fake: FakeNdif, model: str, there: dict[str, str]) -> dict[str, tuple[bool, str]]:
    deploy(fake, model)
    fake.env["packages"]["transformers"] = "5.99.0"
    fake.result = blob({"found": there})
    settings = profile(fake, poll=0.01)
    return {c.name: (c.ok, c.sentence) for c in check.check(settings, model, asking=True)}


def test_another_release_is_judged_by_the_paths_of_its_modules(fake, model):
    found = ask(fake, model, THERE)
    assert found["transformers"][0]
    assert "untested" in found["transformers"][1]
    assert found["modules"] == (True, "all 20 paths that requests name agree")
    assert fake.submitted == 1


def test_modules_that_are_not_there_or_of_another_class(fake, model):
    renamed = {path.replace("down_proj", "w2"): kind for path, kind in THERE.items()}
    ok, sentence = ask(fake, model, renamed)["modules"]
    assert not ok
    assert "model.layers.0.mlp.down_proj and 2 more that requests name are not there" in sentence
    ok, sentence = ask(fake, model, THERE | {"model.norm": "RMSNorm"})["modules"]
    assert ok
    assert "model.norm is a RMSNorm there and a LlamaRMSNorm here" in sentence
    assert f"confreg verify {model}" in sentence


def test_a_server_that_cannot_find_a_module_says_which(fake, model):
    """NDIF's own sentence, where a request names one."""
    said = (
        "The model architecture on this server doesn't match the one your code was traced "
        "against: it has no module at 'model.model.layers.1.mlp'.\n\nalign any mismatch."
    )
    fake.poll = lambda job, number: (200, status("ERROR", said))
    ok, sentence = ask(fake, model, THERE)["modules"]
    assert not ok
    assert "has no module 'model.model.layers.1.mlp', which the request names" in sentence


def test_a_request_that_failed_is_no_lack_of_time(fake, model):
    fake.poll = lambda job, number: (200, status("ERROR", "TypeError: of another release"))
    ok, sentence = ask(fake, model, THERE)["modules"]
    assert not ok
    assert "of another release" in sentence


def test_paths_are_asked_for_only_where_that_can_tell(fake, model):
    deploy(fake, model)
    same = {c.name for c in check.check(profile(fake), model, asking=True)}
    fake.env["packages"]["transformers"] = "5.99.0"
    run = {c.name for c in check.check(profile(fake), model)}
    fake.env["packages"]["transformers"] = "4.57.1"
    broken = {c.name for c in check.check(profile(fake), model, asking=True)}
    fake.env["packages"]["transformers"] = "5.99.0"
    fake.deployments = {}
    away = {c.name for c in check.check(profile(fake), model, asking=True)}
    assert "modules" not in same | run | broken | away
    assert fake.submitted == 0


def test_no_answer_is_no_refusal(fake, model):
    fake.poll = lambda job, number: (200, status("RUNNING"))
    deploy(fake, model)
    fake.env["packages"]["transformers"] = "5.99.0"
    waiting = profile(fake, poll=0.01, deadline=0.3)
    found = {c.name: c for c in check.check(waiting, model, asking=True)}
    assert found["modules"].ok
    assert "not known" in found["modules"].sentence


def test_a_key_that_nobody_knows(fake, model, monkeypatch):
    from nnsight.schema.config import CONFIG

    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    ok, sentence = look(profile(fake), model)["key"]
    assert ok  # a server without authentication knows nobody
    monkeypatch.setattr(NdifProfile, "is_public", property(lambda self: True))
    ok, sentence = look(profile(fake), model)["key"]
    assert not ok
    assert "does not know" in sentence
    assert KEY not in sentence
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    assert look(profile(fake), model)["key"] == (
        False, "none; set NDIF_API_KEY or run `nnsight login`"
    )  # fmt: skip
    monkeypatch.setattr(CONFIG.API, "APIKEY", KEY)
    fake.email = "someone@example.org"
    assert look(profile(fake), model)["key"] == (True, "accepted, as someone@example.org")


def test_nobody_there(fake, model, monkeypatch):
    monkeypatch.setattr(http, "_ANSWER", 0.2)
    gone = profile(fake, host="http://127.0.0.1:9")
    ok, sentence = look(gone, model)["server"]
    assert not ok
    assert "cannot be reached" in sentence


def test_a_run_checks_before_it_submits(fake, model, words, tmp_path):
    fake.env["packages"]["nnsight"] = "0.7.0"
    with pytest.raises(ConfregError, match=r"nnsight: .*0\.7\.0 there: the request may not"):
        confreg.run(
            "entropy_neurons", model=model, text=words, profile=profile(fake), dtype="float32",
            sequence_length=16, max_tokens=64, out=tmp_path / "run.zarr", progress=False,
        )  # fmt: skip
    assert fake.submitted == 0
