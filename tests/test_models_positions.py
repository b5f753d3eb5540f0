"""Where positions depend on a batch's length, a sequence gives the same beside any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo

import confreg
from confreg import ConfregError
from confreg.models import Model, positions
from confreg.models.network import Network
from confreg.options import Options
from confreg.places import make
from confreg.places.profiles import load
from confreg.study import Study

SHORT, LONG = 12, 40
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 5.0, 8.0],
    "original_max_position_embeddings": 24,
}


def longrope():
    return zoo.tiny(
        "phi3", max_position_embeddings=96, original_max_position_embeddings=24,
        rope_parameters=LONGROPE, partial_rotary_factor=1.0,
    )  # fmt: skip


def documents():
    draw = np.random.default_rng(0)
    short = " ".join(f"w{i}" for i in draw.integers(2, 90, SHORT))
    return [short] * 6 + [" ".join(f"w{i}" for i in draw.integers(2, 90, LONG))] + [short] * 3


def losses(network, tokenizer, document):
    """Of one document alone, by plain transformers in float64."""
    ids = torch.tensor([[0, *tokenizer(document, add_special_tokens=False)["input_ids"]]])
    logits = network.double()(input_ids=ids, use_cache=False).logits[0, :-1]
    found = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    network.float()
    return np.append(found.numpy(), np.nan)


@pytest.mark.parametrize("unit_tokens", [16, 10_000])
def test_identical_documents_have_one_loss_under_longrope(unit_tokens, tmp_path):
    network, tokenizer = longrope()
    ds = confreg.run(
        "entropy_neurons", model=Model.wrap(network, tokenizer, name="tiny"), text=documents(),
        per_document=True, sequence_length=64, max_tokens=None, neurons="2:0-1",
        unit_tokens=unit_tokens, out=tmp_path / "o.zarr", progress=False,
    )  # fmt: skip
    wanted = np.concatenate([losses(network, tokenizer, each) for each in documents()])
    np.testing.assert_allclose(ds["loss"].values, wanted, atol=2e-5)
    padded = torch.zeros(2, LONG + 1, dtype=torch.long)
    padded[0, : SHORT + 1] = torch.tensor([0, *tokenizer(documents()[0])["input_ids"]])
    beside = network(input_ids=padded, use_cache=False).logits[0, :SHORT]
    alone = network(input_ids=padded[:1, : SHORT + 1], use_cache=False).logits[0, :SHORT]
    assert (beside - alone).abs().max() > 0.01, "the case shows nothing"


def test_copies_cut_short_are_refused_beyond_the_length():
    network, tokenizer = longrope()
    about = Model.wrap(network, tokenizer).description
    kinds = positions.alike(np.array([13, 41, 13]), about)
    assert kinds.tolist() == [0, 1, 0]
    assert positions.alike(np.array([13, 24]), about) is None
    assert positions.alike(np.array([41, 25]), about) is None

    options = Options.read({"text": documents(), "per_document": True, "sequence_length": 64})
    model = Network("tiny", about=about)
    study = Study(model, options, make(load("memory", None), options, model).budget)
    with pytest.raises(ConfregError, match="shorter copy"):
        study.tokens().one_by_one()


def test_dynamic_scaling_is_refused_beyond_its_length(words):
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    network, tokenizer = zoo.tiny("llama", rope_parameters=dynamic)
    about = Model.wrap(network, tokenizer).description
    assert positions.alike(np.array([64, 30]), about) is None
    with pytest.raises(ConfregError, match="scales its positions dynamically: beyond 64 tokens"):
        positions.alike(np.array([65]), about)


def test_kinds_of_layers_that_scale_by_themselves_are_seen():
    network, tokenizer = longrope()
    about = Model.wrap(network, tokenizer).description
    about.config.rope_parameters = {"full_attention": LONGROPE, "sliding": {"rope_type": "default"}}
    assert positions.alike(np.array([13, 41]), about).tolist() == [0, 1]
