"""Every architecture's attention heads: ablation against masks, scores against patterns."""

from __future__ import annotations

import functools

import heads_oracle
import nnsight
import pytest
import torch
import tracing
import zoo
from confreg.recipes.bos_ablation import attend_first
from tracing import model_of

from confreg import effects as fx
from confreg import models
from confreg.models import Model, families
from confreg.models.placement import Placement

# One head; several of several layers, two of one among them.
SETS = [[(1, 2)], [(0, 1), (1, 0), (1, 3), (2, 2)]]
# Where layer 1 has no heads, or its heads cannot see the first token from everywhere.
OUTER = [[(2, 2)], [(0, 1), (2, 0), (0, 3), (2, 2)]]
OF = dict.fromkeys(("olmo_hybrid", "lfm2", "lfm2_vl", "gpt_neo"), OUTER)
HEADED = [p for p in zoo.EVERY + zoo.EVERY_OF_EXPERTS if p.values[0] not in heads_oracle.NONE]
CHOSEN = (
    fx.loss.total,
    fx.loss.direct,
    fx.entropy.total,
    fx.entropy.direct,
    fx.norm_scale.total,
)
EFFECTS = tuple(effect.name for effect in CHOSEN)
TOLERANCE = 1e-4


@functools.cache
def judge_of(architecture: str) -> heads_oracle.HeadOracle:
    return heads_oracle.HeadOracle(model_of(architecture).nn._module)


def ablate(model: Model, ids: torch.Tensor, sets=SETS) -> dict[str, torch.Tensor]:
    """The recipe's trace; every neuron of the last layer is watched."""
    unit = fx.Unit(
        tracing.all_tokens(ids),
        fx.AttendFirst([torch.tensor(members) for members in sets], model.n_heads),
        fx.Forward(),
        CHOSEN,
        layer=2,
        watched=torch.arange(model.n_neurons),
        changes="all",
    )
    with torch.no_grad():
        return attend_first(model, unit)


@pytest.mark.parametrize("architecture", HEADED)
def test_ablated_heads_are_the_masked_ones(architecture):
    model, ids = model_of(architecture), zoo.tokens(2, 20)
    judge = judge_of(architecture)
    sets = OF.get(architecture, SETS)
    block = ablate(model, ids, sets)
    # Of experts' neurons there is none at tokens that are routed elsewhere, before or after.
    watched = architecture not in zoo.EXPERTS
    clean = judge.activations(ids, 2).flatten(0, -2) if watched else None
    for number, heads in enumerate(sets):
        truth = judge.measured(ids, heads)
        for column, name in enumerate(EFFECTS):
            mine, expected = block["effects"][number, :, column].double(), truth[name].flatten()
            assert torch.equal(mine.isnan(), expected.isnan()), name
            assert expected.nan_to_num().abs().max() > 0.05, "an effect that a test can miss"
            near = TOLERANCE * expected.nan_to_num().abs().clamp_min(1)
            assert ((mine - expected).nan_to_num().abs() <= near).all(), name
        if clean is None:
            continue
        with judge.first_only(heads):
            change = judge.activations(ids, 2).flatten(0, -2) - clean
        torch.testing.assert_close(
            block["activation_change"][number].double(), change, rtol=1e-4, atol=5e-4
        )
        kept = change[(torch.arange(ids.numel()) + 1) % ids.shape[1] != 0]
        torch.testing.assert_close(
            block["activation_change_sum"][number], kept.sum(0), rtol=1e-3, atol=5e-3
        )
        torch.testing.assert_close(
            block["activation_change_abs_sum"][number], kept.abs().sum(0), rtol=1e-3, atol=5e-3
        )


def matched(model: Model, ids: torch.Tensor, first: int, period: int) -> torch.Tensor:
    network = model.nn
    with torch.no_grad(), model.eager_attention(), model.trace(ids, output_attentions=True):
        found = fx.prefix_matching(network.output.attentions, first, period)
        nnsight.save(found)
    return found


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_offloaded_heads_are_those_in_memory(checkpoint, architecture):
    folder = str(checkpoint(architecture))
    layers = "transformer.h" if architecture == "gpt2" else "model.layers"
    ids = zoo.tokens(2, 20)
    model = models.load(folder)
    inside = ablate(model, ids)
    on_disk = {f"{layers}.{layer}": "disk" for layer in range(3)}
    rest = model.description.sizes.keys() - on_disk.keys()
    placed = Placement(device_map=dict.fromkeys(rest, "cpu") | on_disk)
    offloaded = models.load(folder, placed)
    outside = ablate(offloaded, ids)
    for name in ("effects", "activation_change"):
        torch.testing.assert_close(outside[name], inside[name], atol=1e-5, rtol=0, equal_nan=True)
    scores = [matched(each, ids, 11, 10) for each in (offloaded, model)]
    torch.testing.assert_close(*scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", HEADED)
def test_every_architecture_can_be_scored(architecture):
    model, ids = model_of(architecture), zoo.tokens(3, 21)
    usual = model.config._attn_implementation
    found = matched(model, ids, 11, 10)
    assert model.config._attn_implementation == usual
    judge = judge_of(architecture)
    patterns = judge.network(input_ids=ids, output_attentions=True, use_cache=False).attentions
    assert len(patterns) == found.shape[1] == sum(model.attends)
    for layer, pattern in enumerate(patterns):
        # Query 11 looks at 2, the last one, 20, at 11: what came after their token before.
        diagonal = torch.stack([pattern[:, :, t, t - 9] for t in range(11, 21)]).mean(0)
        torch.testing.assert_close(found[:, layer], diagonal.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_patterns_are_those_of_queries_and_keys(architecture):
    network, words = zoo.tiny(architecture)
    model, ids = Model.wrap(network, words), zoo.tokens(3, 21)
    judge = heads_oracle.HeadOracle(network)
    found = matched(model, ids, 11, 10)
    for layer in range(3):
        pattern = judge.patterns(ids, layer)
        expected = torch.stack([pattern[:, :, t, t - 9] for t in range(11, 21)]).mean(0)
        torch.testing.assert_close(found[:, layer], expected, atol=1e-5, rtol=0)
    assert found.std() > 0.01


def test_the_table_is_tested_whole():
    table = families.ARCHITECTURES
    tested = set(heads_oracle.ATTENTION) | heads_oracle.NONE
    assert tested == set(table) | set(families.WRAPPERS)
    assert heads_oracle.NONE - set(families.WRAPPERS) == {
        name for name, row in table.items() if row.no_heads
    }
