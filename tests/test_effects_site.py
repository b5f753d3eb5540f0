"""A recipe's trace over a `Site`, with nnsight: here, and as a remote run makes it up."""

import functools

import nnsight
import oracle
import pytest
import torch
import zoo

from confreg import effects as fx
from confreg.models import Model

LAYER = 2  # the last
INDEX, VALUES = torch.tensor([1, 5, 9]), torch.tensor([0.0, 1.0, -1.0])
NAMES = ("loss_total", "loss_direct", "entropy_total", "rank_total")
EFFECTS = (fx.loss.total, fx.loss.direct, fx.entropy.total, fx.rank.total)
ENGINES = [fx.Forward(), fx.Exact(), fx.Series()]
FAMILIES = ["gpt2", "llama", "gemma2", "olmo2", "opt", "granite"]

nnsight.register("confreg.effects")


@functools.cache
def model_of(architecture):
    return Model.wrap(*zoo.tiny(architecture))


def site_of(model, layer):
    return fx.Site(
        model.down_proj(layer), model.attention_out(layer), model._block(layer), model.final_norm,
        model.unembedding, model.post_norm(layer), model._block(0), model.readout,
        model.write_spec(layer),
    )  # fmt: skip


def ablate(model, unit, **where):
    site = site_of(model, unit.layer)

    with model.trace(unit.inputs, **where):
        activation = site.neurons.input
        if unit.copies:
            site.neurons.input = unit.edits.apply(activation, unit.copies)
        block = site.measure(unit, activation)
        nnsight.save(block)

    return block


def steer(model, unit, **where):
    """An edit of the final residual."""
    site = site_of(model, unit.layer)

    with model.trace(unit.inputs, **where):
        residual = site.final_norm.input
        if unit.copies:
            site.final_norm.input = unit.edits.apply(residual, unit.copies)
        block = site.measure(unit, residual)
        nnsight.save(block)

    return block


def steer_early(model, unit):
    """An edit of an earlier block's input."""
    site = site_of(model, unit.layer)

    with model.trace(unit.inputs):
        residual = site.residual.input
        site.residual.input = unit.edits.apply(residual, unit.copies)
        block = site.measure(unit, residual)
        nnsight.save(block)

    return block


def tokens_of(ids):
    targets = ids.roll(-1, 1)
    targets[:, -1] = -1
    targets = targets.flatten()
    return fx.Tokens(ids, torch.arange(ids.numel()), targets, targets >= 0)


class Steer:
    """Directions added to the residual stream."""

    def __init__(self, alpha, w):
        self.alpha, self.w = alpha, w

    def __len__(self):
        return len(self.alpha)

    def cut(self, start, stop):
        return Steer(self.alpha[start:stop], self.w[start:stop])

    def apply(self, residual, copies):
        return fx.add_to_copies(residual, copies, self.alpha, self.w)

    def writes(self, state, seen):
        return self.alpha[:, None].expand(-1, len(seen)), self.w


def directions():
    generator = torch.Generator().manual_seed(0)
    return Steer(torch.tensor([0.5, -1.0]), torch.randn(2, 32, generator=generator))


@pytest.mark.parametrize("where", [{}, {"remote": "local"}], ids=["here", "remote"])
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_trace_of_five_lines_is_the_oracle_s(architecture, engine, where):
    model, ids = model_of(architecture), zoo.tokens(2, 8)
    unit = fx.Unit(tokens_of(ids), fx.Replace(INDEX, VALUES), engine, EFFECTS, LAYER)
    block = ablate(model, unit, **where)
    truth = oracle.Oracle(zoo.tiny(architecture)[0]).ablate(ids, LAYER, INDEX.tolist(), VALUES)
    for column, name in enumerate(NAMES):
        mine, expected = block["effects"][..., column].double(), truth.effects[name].double()
        if name == "rank_total":  # no rank is -1 here and NaN there; near ties are none of ours
            expected = torch.where((truth.margin > 1e-3) & ~expected.isnan(), expected, mine)
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0, equal_nan=True)
        assert expected.nan_to_num().abs().max() > 0.01, "an effect that a test can miss"


@pytest.mark.parametrize("architecture", FAMILIES)
def test_an_edit_of_the_final_residual_has_every_engine(architecture):
    model, tokens = model_of(architecture), tokens_of(zoo.tokens(2, 8))
    found = [
        steer(model, fx.Unit(tokens, directions(), engine, EFFECTS[:3], LAYER))["effects"]
        for engine in ENGINES
    ]
    assert found[0].nan_to_num().abs().amax((0, 1)).min() > 0.02
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=2e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
def test_an_edit_of_an_earlier_blocks_input_is_a_hook(architecture):
    model, ids = model_of(architecture), zoo.tokens(2, 8)
    edits = directions()
    block = steer_early(model, fx.Unit(tokens_of(ids), edits, fx.Forward(), EFFECTS[:1], 1))
    network, _ = zoo.tiny(architecture)
    layers = network.transformer.h if architecture == "gpt2" else network.model.layers
    losses = []
    with torch.no_grad():
        for add in (None, *(edits.alpha[:, None] * edits.w)):

            def push(module, args, kwargs, add=add):
                hidden = args[0] if args else kwargs["hidden_states"]
                hidden = hidden if add is None else hidden + add
                if args:
                    return (hidden, *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": hidden}

            handle = layers[1].register_forward_pre_hook(push, with_kwargs=True)
            log_p = network(ids, use_cache=False).logits.log_softmax(-1)
            handle.remove()
            losses.append(-log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0])
    expected = torch.stack(losses[1:]) - losses[0]
    mine = block["effects"].unflatten(1, (2, 8))[:, :, :-1, 0]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


def own_measure(logits, targets):
    return logits.softmax(-1).amax(-1)


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
def test_a_measure_of_a_users_file_travels(engine):
    largest = fx.Measure("largest", "1", "probability of the likeliest token", of=own_measure)
    tokens = tokens_of(zoo.tokens(2, 8))
    unit = fx.Unit(tokens, fx.Replace(INDEX, VALUES), engine, [largest.total], LAYER)
    here, there = (ablate(model_of("llama"), unit, **w) for w in ({}, {"remote": "local"}))
    for name in ("effects", "largest"):
        assert torch.equal(here[name], there[name])
    assert here["effects"].abs().max() > 0.01


def test_weights_are_learnt_in_a_trace_that_goes_no_further_than_the_first_block():
    model = model_of("gemma2")
    site, index = site_of(model, LAYER), torch.arange(48)
    with torch.no_grad(), model.trace(zoo.tokens(1, 2)) as tracer:
        like = site.begin.input
        found = nnsight.save(fx.weight_statistics(site, index, like))
        tracer.stop()
    plain = fx.Site(
        site.neurons._module, None, None, site.final_norm._module, site.unembedding._module,
        site.post_norm._module, None, site.readout, site.write,
    )  # fmt: skip
    expected = fx.weight_statistics(plain, index, torch.zeros(1, model.d_model))
    for name, value in expected.items():
        torch.testing.assert_close(torch.as_tensor(found[name]), torch.as_tensor(value))
