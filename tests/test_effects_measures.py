"""Measures of a user's own, beside those that there are, by every engine and by none."""

import pytest
import torch
from effects_case import EFFECTS, VALUES, measure, truth
from effects_oracle import LastLayer

from confreg import effects as fx


def correct(logits, targets):
    p = logits.softmax(-1).gather(-1, targets.clamp_min(0)[:, None])[:, 0]
    return torch.where(targets >= 0, p, torch.nan)


def lead(logits, targets):
    first, second = logits.topk(2).values.unbind(-1)
    return first - second


probability = fx.Measure("probability", "1", "probability of the correct token", of=correct)
margin = fx.Measure("margin", "nats", "likeliest less second", of=lead)
OWN = (probability.total, probability.direct, margin.total, margin.direct)


@pytest.mark.parametrize("engine", ["forward", "exact", "series"])
@pytest.mark.parametrize(("post", "softcap"), [(False, None), (True, None), (False, 5.0)])
def test_a_users_measures_are_measured_like_ours(engine, post, softcap):
    layer = LastLayer(centred=True, norm_bias=True, post=post, softcap=softcap)
    wanted = (*OWN, fx.loss.total, probability.frequency_direct)
    out = measure(layer, engine, wanted)
    expected = truth(layer, wanted)
    assert expected.abs().nan_to_num().amax((0, 1)).min() > 0.002, "an effect that a test can miss"
    torch.testing.assert_close(out["effects"].double(), expected, atol=2e-5, rtol=0, equal_nan=True)
    # What has a value without an edit is returned without one.
    assert out["probability"].shape == out["margin"].shape == out["loss"].shape == (14,)
    torch.testing.assert_close(
        out["probability"].nan_to_num(), (-out["loss"]).exp().nan_to_num(), atol=1e-6, rtol=0
    )


def test_a_measure_of_another_shape_is_named_with_both_shapes():
    wrong = fx.Measure("everything", "1", "all of it", of=lambda logits, targets: logits)
    for engine in ("forward", "exact"):
        with pytest.raises(ValueError, match=r"'everything' returned \(14, 97\).*shape \(14,\)"):
            measure(LastLayer(), engine, [wrong.total])
    with pytest.raises(ValueError, match="'one' returned float"):
        fx.compare(
            torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0, 1]),
            [fx.Measure("one", "1", "one", of=lambda logits, targets: 1.0).total],
        )  # fmt: skip


def test_what_a_users_measure_raises_is_let_through():
    def broken(logits, targets):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        measure(LastLayer(), "exact", [fx.Measure("broken", "1", "broken", of=broken).total])


def test_a_change_and_a_comparison_of_ones_own():
    ratio = fx.Measure(
        "ratio", "1", "ratio", of=correct, change=lambda after, before: after / before
    )
    moved = fx.Measure(
        "moved", "1", "distance",
        compared=lambda before, after: (before.softmax(-1) - after.softmax(-1)).abs().sum(-1),
    )  # fmt: skip
    layer = LastLayer(post=True)
    effects = [ratio.total, moved.total, moved.direct, probability.total]
    found = [measure(layer, engine, effects) for engine in ("forward", "exact")]
    torch.testing.assert_close(
        found[0]["effects"], found[1]["effects"], atol=2e-5, rtol=1e-4, equal_nan=True
    )
    before = found[1]["probability"]
    both = found[1]["effects"][..., 0] * before - before
    torch.testing.assert_close(
        both, found[1]["effects"][..., 3], atol=1e-6, rtol=1e-4, equal_nan=True
    )
    assert found[1]["effects"][..., 1].max() > 0.1
    assert "moved" not in found[1]


@pytest.mark.parametrize("engine", ["forward", "exact", "series"])
@pytest.mark.parametrize(("post", "softcap"), [(False, None), (True, None), (False, 5.0)])
def test_how_sure_and_whether_rightly(engine, post, softcap):
    layer = LastLayer(centred=True, norm_bias=True, post=post, softcap=softcap)
    wanted = (
        fx.confidence.total, fx.confidence.direct, fx.correct.total, fx.correct.direct,
        fx.confidence.frequency_direct, fx.loss.total,
    )  # fmt: skip
    out = measure(layer, engine, wanted)
    expected = truth(layer, wanted)
    assert expected[..., :2].abs().amax((0, 1)).min() > 0.01, "an effect that a test can miss"
    torch.testing.assert_close(out["effects"].double(), expected, atol=2e-5, rtol=0, equal_nan=True)
    assert out["correct"].isnan().sum() == 2, "the last position of each of two rows"


def test_of_equally_likely_tokens_the_first_is_the_prediction():
    logits = torch.tensor([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([1, 2, 1])
    assert fx.correct.of(logits, targets).tolist() == [1, 0, 0]
    torch.testing.assert_close(fx.confidence.of(logits, targets)[2], torch.tensor(1 / 3))


@pytest.mark.parametrize("post", [False, True])
def test_predictions_are_compared_by_every_pathway(post):
    layer = LastLayer(post=post)
    effects = [
        fx.divergence.total, fx.divergence.direct, fx.divergence.frequency_direct,
        fx.tempered_divergence.total, fx.temperature_share.total,
    ]  # fmt: skip
    found = [measure(layer, engine, effects)["effects"] for engine in ("forward", "exact")]
    sets = fx.Together([torch.tensor([n]) for n in (3, 0, 7, 20)], [v[None] for v in VALUES])
    found.append(measure(layer, "exact", effects, edits=sets)["effects"])
    assert (found[0][..., 0] - found[0][..., 2]).abs().max() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other[..., :4], found[0][..., :4], atol=1e-5, rtol=1e-4)
        sure = found[0][..., 0] > 1e-3
        torch.testing.assert_close(other[..., 4][sure], found[0][..., 4][sure], atol=1e-3, rtol=0)


def test_a_measure_may_ask_for_the_token_frequencies():
    def expected(logits, targets, log_frequency):
        return logits.log_softmax(-1)[:, log_frequency > -torch.inf].mean(-1)

    rarity = fx.Measure("rarity", "nats", "rarity", of=expected, given=("log_frequency",))
    layer = LastLayer()
    found = [measure(layer, engine, [rarity.total])["effects"] for engine in ("forward", "exact")]
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=0)
    assert found[0].abs().max() > 0.1
    with pytest.raises(ValueError, match="rarity_total needs the counts"):
        measure(layer, "exact", [rarity.total], counts=None)


def test_compare_needs_no_language_model():
    generator = torch.Generator().manual_seed(0)
    before, after = torch.randn(2, 5, 10, generator=generator)
    targets = torch.tensor([0, 3, 9, -1, 2])
    effects = [fx.loss.total, fx.top1.total, fx.divergence.total, fx.entropy.total, margin.total]
    found = fx.compare(before, after, targets, effects)
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    loss = [-(q[t] - p[t]) if t >= 0 else torch.nan for p, q, t in zip(log_p, log_q, targets)]
    expected = torch.stack(
        (
            torch.tensor(loss),
            (before.argmax(-1) != after.argmax(-1)).float(),
            (log_p.exp() * (log_p - log_q)).sum(-1),
            (log_p.exp() * log_p - log_q.exp() * log_q).sum(-1),
            lead(after, targets) - lead(before, targets),
        ),
        -1,
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, equal_nan=True)
    assert fx.compare(before.double(), after.double(), targets, effects).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ours_follow_their_definitions(dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 200, generator=generator).to(dtype)
    targets = torch.randint(-1, 200, (40,), generator=generator)
    log_p, known = logits.log_softmax(-1), targets >= 0
    at = log_p.gather(-1, targets.clamp_min(0)[:, None])
    rank = (log_p > at).sum(-1)
    expected = {
        fx.loss: torch.where(known, -at[:, 0], torch.nan),
        fx.entropy: -(log_p.exp() * log_p).sum(-1),
        fx.rank: torch.where(known, rank, -1),
        fx.reciprocal_rank: torch.where(known, 1 / (1.0 + rank), torch.nan).to(dtype),
        fx.top1: log_p.argmax(-1),
        fx.confidence: logits.softmax(-1).amax(-1),
        fx.correct: torch.where(known, (log_p.argmax(-1) == targets).to(dtype), torch.nan),
    }
    shared = fx.Prediction(logits, targets)
    for one, value in expected.items():
        found = one.of(logits, targets)
        torch.testing.assert_close(found, value, equal_nan=True)
        # Whatever was read before.
        torch.testing.assert_close(one.read(shared), found, atol=0, rtol=0, equal_nan=True)


def test_names_and_words_of_effects():
    assert EFFECTS["divergence_tempered_total"] is fx.tempered_divergence.total
    assert EFFECTS["temperature_share"] is fx.temperature_share.total
    assert fx.loss.direct.quantity == "loss"
    assert fx.loss.direct.pathway == "direct"
    words = {
        fx.loss.total: "change of loss, everything downstream recomputed",
        fx.loss.direct: "change of loss, final norm's scale frozen",
        fx.loss.frequency_direct: "change of loss, token-frequency component put back",
        fx.rank.total: "change of the correct token's rank",
        fx.top1.total: "1 where the most likely token changes",
        fx.norm_scale.total: "change of the final norm's scale",
        fx.confidence.direct: (
            "change of probability of the likeliest token, final norm's scale frozen"
        ),
        fx.correct.total: "1 where the prediction becomes correct, -1 where it becomes wrong",
        fx.kl_frequency.total: (
            "change of D(p_freq ‖ p_model), from the unigrams to the prediction, everything "
            "downstream recomputed"
        ),
        probability.total: (
            "change of probability of the correct token, everything downstream recomputed"
        ),
    }
    for effect, expected in words.items():
        assert effect.long_name == expected
    assert fx.entropy.total.units == "nats"
    assert fx.rank.total.units == "1"


def test_a_measure_is_read_off_one_prediction_or_compares_two():
    for both in ({}, {"of": correct, "compared": correct}):
        with pytest.raises(ValueError, match="needs either `of` or `compared`"):
            fx.Measure("neither", "1", "neither", **both)
