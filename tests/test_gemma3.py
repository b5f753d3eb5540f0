"""A second real model: Gemma 3 270M, where its terms were accepted and it was fetched before."""

from __future__ import annotations

import numpy as np
import pytest
import run_oracle
import torch

import confreg
from confreg import models
from confreg.models import embedded

ALIAS = "gemma3-270m"
NEURONS, TOKENS = 4, 32

pytestmark = [
    pytest.mark.model,
    pytest.mark.slow,
    # Nobody's tests accept terms, whatever else may not be skipped.
    pytest.mark.skipif(
        not embedded.is_here(ALIAS),
        reason=f"{ALIAS} was not fetched on this machine (confreg fetch {ALIAS})",
    ),
]

# Of google/gemma-3-270m's config.json. What a GGUF does not say, transformers fills in.
PUBLISHED = {
    "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048,
    "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    "query_pre_attn_scalar": 256, "sliding_window": 512, "max_position_embeddings": 32768,
    "vocab_size": 262144, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
    "use_bidirectional_attention": False, "tie_word_embeddings": True,
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
}  # fmt: skip
THETA = {"sliding_attention": 1e4, "full_attention": 1e6}


@pytest.fixture(scope="module")
def model():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield models.load(ALIAS)
    torch.set_num_threads(before)


def test_it_is_built_as_published(model):
    network = model.nn._module
    config = network.config
    assert {name: getattr(config, name) for name in PUBLISHED} == PUBLISHED
    assert config.rms_norm_eps == pytest.approx(1e-6)
    for kind, theta in THETA.items():
        rope = config.rope_parameters[kind]
        assert (rope["rope_type"], rope["rope_theta"]) == ("default", theta)
        frequencies = getattr(network.model.rotary_emb, f"{kind}_inv_freq")
        expected = theta ** -(torch.arange(0, 256, 2) / 256)
        torch.testing.assert_close(frequencies, expected, rtol=1e-5, atol=0)
    assert float(network.model.embed_tokens.embed_scale) == pytest.approx(640**0.5)
    assert network.lm_head.weight.data_ptr() == network.model.embed_tokens.weight.data_ptr()
    # A file of llama.cpp has 1 + γ, and γ = −1 switches an entry off.
    gains = [p for name, p in network.named_parameters() if name.endswith("layernorm.weight")]
    assert min(float(gain.detach().min()) for gain in gains) < -0.99
    assert (model.n_layers, model.n_neurons, model.vocab_real) == (18, 2048, 262144)


def test_its_tokens_are_as_published(model):
    tokenizer = model.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<bos>", "<eos>")
    assert tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"]) == [105, 106]
    assert tokenizer("The capital of France is").input_ids == [2, 818, 5279, 529, 7001, 563]
    text = "a  b\n\n   def f(x): 日本 😀 \u0e01"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer("   x", add_special_tokens=False).input_ids == [139, 236781]


RECIPE = """
from confreg import effects as fx
from confreg import recipe, steps
from confreg.recipes.entropy_neurons import ablate


@recipe(effects=(fx.loss.total, fx.loss.direct, fx.entropy.total, fx.entropy.direct))
def ablation_alone(study, *, layer: int = -1):
    tokens, neurons = study.tokens(), study.neurons(layer)
    value = steps.ablation_value(study, neurons, tokens, "mean", over="all")
    return [steps.ablation(study, ablate, neurons, tokens, effects=study.effects(), to=value)]
"""
"""entropy_neurons without its statistics of weights: of this vocabulary the dearest part."""


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):
    """The same neurons × tokens by every engine, the textbook entropy neuron among them."""
    out = tmp_path_factory.mktemp("gemma3")
    (out / "ablation_alone.py").write_text(RECIPE)
    return {
        engine: confreg.run(
            str(out / "ablation_alone.py"), model=model, neurons=f"17.1650,random:{NEURONS - 1}",
            max_tokens=TOKENS, sequence_length=TOKENS, engine=engine,
            out=out / f"{engine}.zarr", progress=False, seed=5,
        ).load()
        for engine in ("series", "exact", "forward")
    }  # fmt: skip


@pytest.fixture(scope="module")
def truth(model, runs):
    return run_oracle.truth_of(model, runs["forward"], 17, 2)


@pytest.mark.parametrize("engine", ["series", "exact", "forward"])
def test_every_engine_agrees_with_the_oracle(runs, truth, engine):
    ds = runs[engine]
    assert ds["effects"].shape[:2] == (NEURONS, TOKENS)
    assert ds["token_id"].values[0] == 2
    run_oracle.assert_agrees(ds, truth)


def test_it_predicts_text(runs):
    assert 1 < float(np.nanmean(runs["exact"]["loss"])) < 4
