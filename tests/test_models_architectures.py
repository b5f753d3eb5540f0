"""Every row of the table against an oracle that does not read it."""

from __future__ import annotations

import functools

import oracle
import pytest
import torch
import tracing
import zoo
from tracing import model_of
from transformers.activations import ACT2FN

from confreg import effects
from confreg.models import derived, families

TOLERANCE = 1e-4  # nats
TIE = 1e-5
ROUNDED = {"qwen3_5_text", "qwen3_5"}
"""Whose linear attention rounds by more than the tolerance in float32, in any forward pass."""


@functools.cache
def judge_of(architecture: str, dtype: torch.dtype = torch.float64) -> oracle.Oracle:
    return oracle.Oracle(model_of(architecture).nn._module, dtype)


@functools.cache
def truth_of(architecture: str, layer: int) -> oracle.Ablation:
    ids, neurons = zoo.tokens(), list(range(48))
    dtype = torch.float32 if architecture in ROUNDED else torch.float64
    return judge_of(architecture, dtype).ablate(ids, layer, neurons, values_of(architecture, layer))


@functools.cache
def values_of(architecture: str, layer: int) -> torch.Tensor:
    """Mean activations, and for a quarter of the neurons a value that they never take."""
    values = (
        judge_of(architecture).activations(zoo.tokens(), layer).flatten(0, -2).mean(0)[:48].float()
    )
    values[::4] += 2
    return values


@pytest.mark.parametrize("architecture", zoo.EVERY)
def test_readout_turns_the_final_residual_into_the_logits(architecture):
    model = model_of(architecture)
    norm, head = model.final_norm, model.unembedding
    ids = zoo.tokens()
    with model.trace(ids):
        residual = norm.input.save()
        readout = effects.read_readout(norm, head, residual, **model.readout)
        at = readout.centre(residual) / readout.norm_scale(residual)[..., None]
        mine = readout.finish(readout.unembed(readout.gain * at) + readout.offset).save()
    logits = model.nn._module(ids).logits
    assert logits.std() > 0.3
    torch.testing.assert_close(mine, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", zoo.EVERY)
def test_every_layer_has_its_neurons(architecture):
    model = model_of(architecture)
    judge = judge_of(architecture)
    ids = zoo.tokens()
    width = {"bloom": 128, "mpt": 128}.get(architecture, 48)
    assert (model.n_layers, model.n_neurons, model.d_model) == (3, width, 32)
    assert (model.vocab_size, model.vocab_real) == (zoo.ROWS, zoo.VOCAB)
    for layer in range(-3, 3):
        down = model.down_proj(layer)
        with model.trace(ids):
            seen = down.input.save()
        expected = judge.activations(ids, layer % 3)
        torch.testing.assert_close(seen.double(), expected, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("engine", ["exact", "series", "forward"])
@pytest.mark.parametrize("architecture", zoo.EVERY)
def test_last_layer_agrees_with_the_oracle(architecture, engine):
    compare(architecture, 2, engine)


@pytest.mark.parametrize("architecture", zoo.EVERY)
def test_first_layer_agrees_with_the_oracle(architecture):
    compare(architecture, 0, "forward")


def compare(architecture: str, layer: int, engine: str) -> None:
    model, truth = model_of(architecture), truth_of(architecture, layer)
    unit = tracing.unit_of(zoo.tokens(), values_of(architecture, layer), layer, engine)
    found = tracing.measure(model, unit)["effects"]
    for column, name in enumerate(tracing.EFFECTS):
        expected, mine = truth.effects[name], found[..., column].double()
        if name.startswith(("rank", "top1")):
            clear = (truth.margin > TIE) & expected.isfinite()
            assert clear.float().mean() > 0.9
            assert torch.equal(mine[clear], expected[clear]), name
        else:
            assert expected.nan_to_num().abs().max() > 0.01, "an effect that a test can miss"
            assert torch.equal(mine.isnan(), expected.isnan()), name
            assert (mine - expected).nan_to_num().abs().max() <= TOLERANCE, name


def test_the_table_is_tested_whole():
    known = set(families.ARCHITECTURES) | set(families.WRAPPERS)
    of_experts = {*zoo.EXPERTS, *zoo.AROUND_EXPERTS}
    assert known == set(zoo.ARCHITECTURES) | of_experts
    assert set(zoo.ARCHITECTURES) == set(oracle.PATHS)
    assert of_experts == set(oracle.EXPERTS)
    # Text models that are found inside others only are tested there.
    inside = {zoo.config(name).get_text_config().model_type for name in families.WRAPPERS}
    assert set(families.TEXT_MODELS) <= inside


def given(model, modules):
    """What modules are given in a plain forward."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0]}))
        for name, module in modules.items()
    ]
    model.nn._module(zoo.tokens())
    for hook in hooks:
        hook.remove()
    return seen


def activation(mlp, config):
    """The activation function of an MLP as transformers holds it; LFM 2 names it nowhere."""
    for name in ("gelu_impl", "act", "act_fn", "activation_fn"):
        if callable(getattr(mlp, name, None)):
            return getattr(mlp, name)
    for name in ("hidden_act", "hidden_activation", "activation_function"):
        if isinstance(getattr(config, name, None), str):
            return ACT2FN[getattr(config, name)]
    return torch.nn.functional.silu


@pytest.mark.parametrize("architecture", zoo.EVERY)
def test_what_neurons_read_makes_them(architecture):
    """act(gate) · up from the folded rows, and the down-projection's input in a plain forward."""
    model = model_of(architecture)
    row, config = model.description.row, model.description.config
    if not row.up:
        pytest.skip("its row names no input side")
    before = row.before_mlp(config)
    for layer in range(model.n_layers):
        block = model._block(layer)._module
        seen = given(
            model,
            {
                "x": block.get_submodule(before or row.up),
                "neurons": model.down_proj(layer)._module,
            },
        )
        x = seen["x"].double()
        if before is not None:
            x = x - x.mean(-1, keepdim=True) if row.centred else x
            x = x / (x.square().mean(-1, keepdim=True) + row.norm_eps(config)).sqrt()
        inputs = model.inputs(layer)
        for name in ("up", "gate", "norm"):  # outside a trace it is the modules that are called
            envoy = getattr(inputs, name)
            setattr(inputs, name, None if envoy is None else envoy._module)
        mlp = block.get_submodule(row.up.rpartition(".")[0])
        act = activation(mlp, config)
        for memory in (2**29, 20_000):
            with torch.no_grad():
                rows = inputs.rows(torch.zeros(1, model.d_model), memory)
            z = {name: (x @ w.double().T + b.double()).float() for name, (w, b) in rows.items()}
            mine = act(z["gate"]) * z["in"] if "gate" in z else act(z["in"])
            torch.testing.assert_close(
                mine.flatten(), seen["neurons"].flatten(), rtol=1e-4, atol=1e-4
            )


def test_derived_rows_know_the_input_side():
    """Where they say one, it is that of the table."""
    known = 0
    for architecture in zoo.FEW:
        if architecture not in families.ARCHITECTURES:
            continue
        network, _ = zoo.tiny(architecture)
        row = families.ARCHITECTURES[architecture]
        with torch.device("meta"):
            bare = type(network)(network.config)
        found = derived.derive(network.config, network.config, architecture, bare)
        if found.up:
            before = row.before_mlp(network.config)
            assert (found.up, found.gate, found.norm_before) == (row.up, row.gate, before)
            known += 1
    assert known >= 3
