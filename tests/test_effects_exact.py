"""The engines ``forward`` and ``exact`` against brute force in float64."""

import itertools

import pytest
import torch
from effects_case import measure, truth
from effects_oracle import LastLayer, state

from confreg import effects as fx

NAMES = (
    "loss_total", "loss_direct", "entropy_total", "entropy_direct", "rank_total", "top1_total",
    "kl_frequency_total", "loss_frequency_direct", "kl_frequency_frequency_direct",
)  # fmt: skip
LAYERS = list(itertools.product((False, True), (False, True), (False, True), (None, 5.0)))


def layer_of(centred, bias, post, softcap, **options):
    return LastLayer(
        centred=centred, norm_bias=bias, head_bias=bias, post=post, softcap=softcap,
        scale=0.6 if softcap else 1.0, multiplier=0.8 if not post else 1.0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("engine", ["forward", "exact"])
@pytest.mark.parametrize(("centred", "bias", "post", "softcap"), LAYERS)
def test_agrees_with_brute_force(engine, centred, bias, post, softcap):
    layer = layer_of(centred, bias, post, softcap)
    found = measure(layer, engine, NAMES)["effects"]
    expected = truth(layer, NAMES)
    assert expected[..., :4].nan_to_num().abs().amax((0, 1)).min() > 0.01  # something to find
    assert (expected[..., 4:6] != 0).any()
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("engine", ["forward", "exact"])
def test_a_position_without_a_next_token_has_no_loss(engine):
    out = measure(layer_of(True, True, False, None), engine, NAMES)
    last = torch.tensor([6, 13])
    assert out["loss"].isnan().nonzero()[:, 0].tolist() == last.tolist()
    assert (out["rank"][last] == -1).all()
    missing = out["effects"].isnan().any(0)
    assert missing[last, 0].all()
    assert not missing[last, 2].any()  # entropy needs no next token
    kept = out["effects"][:, [t for t in range(14) if t not in (6, 13)]].double()
    torch.testing.assert_close(out["effect_sum"], kept.sum(1))
    torch.testing.assert_close(out["effect_abs_sum"], kept.abs().sum(1))


def test_the_memory_budget_changes_no_number():
    layer = layer_of(False, False, True, None)
    large = measure(layer, "exact", NAMES, memory=2**26)["effects"]
    small = measure(layer, "exact", NAMES, memory=1)["effects"]
    torch.testing.assert_close(large, small, atol=2e-6, rtol=0, equal_nan=True)


def test_reducing_returns_the_sums_without_the_cube():
    layer = layer_of(False, False, False, None)
    whole, reduced = (measure(layer, "exact", NAMES, cube=c) for c in (True, False))
    assert "effects" not in reduced
    torch.testing.assert_close(whole["effect_abs_sum"], reduced["effect_abs_sum"])


def test_a_sample_is_recomputed_in_float64():
    out = measure(layer_of(False, False, False, None), "exact", NAMES[:4], sample=20)
    assert out["pairs"] == 4 * 14
    assert out["sampled"] == 20
    assert 0 < out["error_largest"].max() < 1e-5
    assert (out["error_sum"] <= 20 * out["error_largest"]).all()


@pytest.mark.parametrize("centred", [False, True])
def test_sums_over_a_large_vocabulary_keep_their_digits(centred):
    layer = layer_of(centred, False, False, None, vocabulary=60_000)
    strong = torch.tensor([2.0, -3.0, 4.0, 2.0])
    out = measure(layer, "exact", NAMES[:4], values=strong, sample=4 * 14)
    assert out["effects"].nan_to_num().abs().amax() > 10
    assert (out["error_largest"] < 1e-5).all()


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("engine", ["forward", "exact", "series"])
def test_a_servers_autocast_changes_no_number(engine, post):
    layer = layer_of(True, True, post, None).bfloat16()
    plain, cast = (measure(layer, engine, NAMES, autocast=on) for on in (False, True))
    torch.testing.assert_close(cast["effects"], plain["effects"], atol=0, rtol=0, equal_nan=True)


def test_activations_are_those_of_the_neurons():
    layer = layer_of(False, False, False, None)
    out = measure(layer, "exact", NAMES[:1], watched=torch.tensor([3, 0, 7, 20]))
    _, activation, _, _ = state(layer)
    torch.testing.assert_close(out["activation"], activation.flatten(0, 1)[:, [3, 0, 7, 20]].T)


def test_a_weight_without_storage_is_refused():
    layer = layer_of(False, False, False, None)
    layer.head.to("meta")
    like = torch.randn(1, 16)
    with pytest.raises(fx.MetaWeightError, match="meta"):
        fx.read_readout(layer.norm, lambda y: layer.head(y.to("meta")), like, False, 1e-3)


@pytest.mark.parametrize(
    ("effect", "says"),
    [
        (fx.temperature_share.direct, "temperature_share has no direct effect"),
        (fx.norm_scale.total, "norm_scale_total is measured by the engine Forward only"),
    ],
)
def test_an_effect_that_cannot_be_had_is_named(effect, says):
    with pytest.raises(ValueError, match=says):
        measure(layer_of(False, False, False, None), "exact", [effect])


@pytest.mark.parametrize("effect", [fx.kl_frequency.total, fx.loss.frequency_direct])
def test_effects_of_token_frequencies_need_counts(effect):
    with pytest.raises(ValueError, match=f"{effect.name} needs the counts"):
        measure(layer_of(False, False, False, None), "exact", [effect], counts=None)
