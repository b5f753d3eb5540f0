"""The engine ``series`` against brute force in float64: it may not be off by its tolerance."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from effects_case import measure, truth
from effects_oracle import LastLayer

NAMES = ("loss_total", "loss_direct", "entropy_total", "entropy_direct")
LAYERS = list(itertools.product((False, True), (False, True), (False, True), (1.0, 0.6)))
FLOAT32 = 5e-6  # what rounding may add


def layer_of(centred, bias, post, scale, **options):
    return LastLayer(
        centred=centred, norm_bias=bias, head_bias=bias, post=post, scale=scale,
        multiplier=0.8 if not post else 1.0, vocabulary=5000, **options,
    )  # fmt: skip


NEURONS = torch.arange(24)


def values(size):
    """Ablation values, from no change to a large one."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(24, generator=generator) * size


@pytest.mark.parametrize(("centred", "bias", "post", "scale"), LAYERS)
def test_is_within_its_tolerance(centred, bias, post, scale):
    layer = layer_of(centred, bias, post, scale)
    layer.down.weight.data.mul_(0.1)  # so that every stage has its share
    options = {"neurons": NEURONS, "values": values(1.0)}
    out = measure(layer, "series", NAMES, tolerance=1e-5, **options)
    expected = truth(layer, NAMES, **options)
    torch.testing.assert_close(
        out["effects"].double(), expected, atol=1e-5 + FLOAT32, rtol=0, equal_nan=True
    )
    assert 0 < out["recomputed"] < out["pairs"]


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_large_and_small_ablations(size):
    layer = layer_of(False, False, False, 1.0, sharpness=2.0)
    layer.down.weight.data.mul_(0.3)
    options = {"neurons": NEURONS, "values": values(size)}
    out = measure(layer, "series", NAMES, **options)["effects"].double()
    torch.testing.assert_close(
        out, truth(layer, NAMES, **options), atol=2e-5, rtol=1e-6, equal_nan=True
    )


def test_a_looser_tolerance_recomputes_less_and_still_holds():
    layer = layer_of(False, False, False, 1.0)
    layer.down.weight.data.mul_(0.05)
    options = {"neurons": NEURONS, "values": values(1.0)}
    expected = truth(layer, NAMES, **options)
    shares = []
    for tolerance in (1e-6, 1e-4, 1e-2):
        out = measure(layer, "series", NAMES, tolerance=tolerance, **options)
        worst = (out["effects"] - expected).abs().nan_to_num().max()
        assert worst < tolerance + FLOAT32
        shares.append(float(out["recomputed"]))
    assert shares[0] > shares[1] > shares[2]


@pytest.mark.parametrize("names", [("loss_total",), ("entropy_direct", "loss_total"), NAMES[::-1]])
def test_any_choice_and_order_of_effects(names):
    layer = layer_of(True, True, False, 1.0)
    layer.down.weight.data.mul_(0.1)
    torch.testing.assert_close(
        measure(layer, "series", names)["effects"].double(),
        truth(layer, names), atol=2e-5, rtol=0, equal_nan=True,
    )  # fmt: skip


FREQUENCY = (
    "loss_total", "loss_frequency_direct", "entropy_total", "entropy_frequency_direct",
    "kl_frequency_total", "kl_frequency_frequency_direct",
)  # fmt: skip


@pytest.mark.parametrize("engine", ["series", "exact"])
@pytest.mark.parametrize(("centred", "bias", "post", "scale"), LAYERS)
def test_frequency_effects_are_within_the_tolerance(centred, bias, post, scale, engine):
    layer = layer_of(centred, bias, post, scale)
    layer.down.weight.data.mul_(0.1)
    options = {"neurons": NEURONS, "values": values(1.0)}
    out = measure(layer, engine, FREQUENCY, tolerance=1e-5, **options)
    expected = truth(layer, FREQUENCY, **options)
    assert (expected[..., 0] - expected[..., 1]).abs().nan_to_num().max() > 1e-3
    torch.testing.assert_close(out["effects"].double(), expected, atol=2e-5, rtol=0, equal_nan=True)
    if engine == "series":
        assert 0 < out["recomputed"] < out["pairs"]


def test_other_effects_beside_it_are_exact():
    names = ("rank_total", "loss_total", "top1_total", "loss_frequency_direct")
    layer = layer_of(False, False, False, 1.0)
    out = measure(layer, "series", names)
    torch.testing.assert_close(
        out["effects"].double(), truth(layer, names), atol=2e-5, rtol=0, equal_nan=True
    )
    assert out["recomputed"] == out["pairs"]


def test_a_softcap_falls_back_to_exact_and_says_so():
    layer = layer_of(False, False, True, 1.0, softcap=5.0)
    out = measure(layer, "series", NAMES)
    torch.testing.assert_close(
        out["effects"].double(), truth(layer, NAMES), atol=2e-5, rtol=0, equal_nan=True
    )
    assert out["recomputed"] == out["pairs"]


def test_neither_memory_nor_threads_change_a_number():
    layer = layer_of(True, True, True, 1.0)
    layer.down.weight.data.mul_(0.05)
    options = {"neurons": NEURONS, "values": values(1.0)}
    threads = torch.get_num_threads()
    found = []
    for memory, count in ((2**28, threads), (2**20, threads), (1, threads), (2**28, 1)):
        torch.set_num_threads(count)
        found.append(measure(layer, "series", NAMES, memory=memory, **options)["effects"])
    torch.set_num_threads(threads)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-5, rtol=0, equal_nan=True)


def test_what_a_neuron_adds_to_every_logit_costs_no_digits():
    layer = layer_of(False, False, False, 1.0)
    layer.down.weight.data.mul_(0.05)
    layer.head.weight.data += 3 * torch.randn(1, 16)  # a direction shared by the whole vocabulary
    options = {"neurons": NEURONS, "values": values(5.0)}
    torch.testing.assert_close(
        measure(layer, "series", NAMES, **options)["effects"].double(),
        truth(layer, NAMES, **options), atol=2e-5, rtol=0, equal_nan=True,
    )  # fmt: skip


def test_the_sample_measures_the_error_that_there_is():
    layer = layer_of(False, False, False, 1.0)
    layer.down.weight.data.mul_(0.05)
    options = {"neurons": NEURONS, "values": values(1.0)}
    out = measure(layer, "series", NAMES, tolerance=1e-2, sample=10**6, **options)
    error = (out["effects"] - truth(layer, NAMES, **options)).abs().nan_to_num().flatten(0, 1)
    assert out["sampled"] == len(error)
    assert out["error_largest"].tolist() == pytest.approx(error.amax(0).tolist(), abs=FLOAT32)
    assert out["error_sum"].tolist() == pytest.approx(
        error.sum(0).tolist(), abs=FLOAT32 * len(error)
    )


def test_a_likely_token_far_above_the_others_is_no_place_for_moments():
    layer = layer_of(False, False, False, 1.0)
    layer.down.weight.data.mul_(0.2)
    layer.head.weight.data.mul_(40)  # the likeliest token some tens of nats above the next
    options = {"neurons": NEURONS, "values": values(30.0)}
    expected = truth(layer, NAMES, **options)
    assert expected.abs().nan_to_num().max() > 30
    torch.testing.assert_close(
        measure(layer, "series", NAMES, **options)["effects"].double(),
        expected, atol=1e-3, rtol=1e-5, equal_nan=True,
    )  # fmt: skip


@pytest.mark.parametrize("post", [False, True])
def test_what_all_logits_share_costs_no_digits(post):
    layer = layer_of(True, True, post, 1.0)
    layer.down.weight.data.mul_(0.05)
    layer.head.bias.data -= 300
    options = {"neurons": NEURONS, "values": values(1.0)}
    out = measure(layer, "series", NAMES, tolerance=1e-5, **options)
    # Float32 logits of that size are no better than 3e-5: the same logits, summed exactly.
    exact = measure(layer, "exact", NAMES, **options)["effects"]
    torch.testing.assert_close(out["effects"], exact, atol=1e-5 + FLOAT32, rtol=0, equal_nan=True)
    assert 0 < out["recomputed"] < out["pairs"]


def test_bounds_hold_where_likely_tokens_move_alike_and_where_y_is_near_minus_two():
    """Constructed: stage 1's sums of one pair against float64, and its bound."""
    from confreg.effects.engines.series.expectations import Expectations, stacked

    generator = torch.Generator().manual_seed(0)
    for trial in range(300):
        size = 400
        log_p = torch.log_softmax(3 * torch.randn(size, generator=generator).double(), -1)
        p, y = log_p.exp(), log_p - (log_p.exp() @ log_p)
        kept = log_p.argsort(descending=True)[: (0, 1, 10, 100)[trial % 4]]
        rest = torch.ones(size, dtype=torch.bool)
        rest[kept] = False
        f = torch.randn(size, generator=generator).double() * (0.02, 0.3, 2.0)[trial % 3]
        f = f - p @ f
        lost = torch.where(rest, f.exp() - 1 - f - f.square() / 2, 0.0)
        lost_c = torch.where(rest, f * (f.exp() - 1 - f), 0.0)
        a, b, c = p @ f.exp(), (p * y) @ f.exp(), (p * f) @ f.exp()
        a2, b2, c2 = a - p @ lost, b - (p * y) @ lost, c - p @ lost_c
        f2, y2 = (p * f.square())[rest].sum(), (p * y * f.square())[rest].sum()
        reach = f.abs().max()
        table = stacked(a2, b2, c2, f2, y2, reach, noise=torch.zeros_like(reach))
        sums = Expectations(table, y[rest].max())
        loss = (a.log() - a2.log()).abs()
        entropy = (a.log() - (b + c) / a - a2.log() + (b2 + c2) / a2).abs()
        assert loss <= sums.loss_bound() + 1e-13
        assert max(loss, entropy) <= 1.05 * sums.entropy_bound() + 1e-13 or f.abs().max() > 1


@pytest.mark.parametrize("order", [3, 4, 6, 10])
@pytest.mark.parametrize(("bias", "sharpness"), [(False, 1.0), (True, 1.0), (False, 2.5)])
def test_higher_orders_are_within_their_bounds(bias, sharpness, order, monkeypatch):
    """All neurons are taken to one order, whether it pays or not."""
    from confreg.effects.engines.series import stages

    def everything(own, joint, directions, *_):
        rows = torch.arange(len(directions.u))
        return rows, torch.full_like(rows, order)

    monkeypatch.setattr(stages, "choose", everything)
    layer = layer_of(True, bias, False, 1.0, sharpness=sharpness)
    layer.down.weight.data.mul_(0.05)
    options = {"neurons": NEURONS, "values": values(1.0)}
    expected = truth(layer, NAMES, **options)
    kept = []
    for tolerance in (1e-5, 1e-3, 1e-1):
        out = measure(layer, "series", NAMES, tolerance=tolerance, **options)
        error = (out["effects"] - expected).abs().nan_to_num().amax(-1)
        assert error.max() < tolerance + FLOAT32
        kept.append(1 - float(out["recomputed"] / out["pairs"]))
    assert 0 < kept[0] < kept[2] > 0.5


def test_p_sums_to_one_over_a_large_vocabulary():
    from confreg.effects.engines.algebra import Unablated
    from confreg.effects.engines.series.moments import TokenMoments

    readout = SimpleNamespace(finish=lambda raw: raw, scale=1.0, offset=torch.zeros(128_000))
    readout.shifted = False
    generator = torch.Generator().manual_seed(0)
    raw = 3 * torch.randn(8, 128_000, generator=generator)
    own = TokenMoments(Unablated(readout, raw, torch.zeros(8, dtype=torch.int64)))
    total = own.log_p.double().exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", [3, 4, 5, 6, 8, 10])
def test_what_higher_orders_leave_out_of_each_sum_is_within_its_bound(order, bias):
    """In float64, sum by sum, at gains and temperatures from small to large."""
    from confreg.effects.engines.algebra import Directions, Unablated
    from confreg.effects.engines.series.higher import HigherMoments
    from confreg.effects.engines.series.moments import JointMoments, TokenMoments
    from confreg.effects.engines.series.orders import VariableMoments

    generator = torch.Generator().manual_seed(order)
    tokens, vocabulary, neurons = 12, 300, 10

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offset = normal(vocabulary) if bias else torch.zeros(vocabulary, dtype=torch.float64)
    readout = SimpleNamespace(
        finish=lambda raw: raw, scale=1.0, offset=offset, shifted=bias, softcap=None
    )
    targets = torch.zeros(tokens, dtype=torch.int64)
    unablated = Unablated(readout, 3 * normal(tokens, vocabulary), targets)
    directions = Directions(normal(neurons, vocabulary) * normal(neurons, vocabulary).square())
    own = TokenMoments(unablated)
    joint = JointMoments(own, directions)
    rows, orders = torch.arange(neurons), torch.full((neurons,), order)
    higher = HigherMoments(own, joint, directions, rows, orders, VariableMoments(own))
    gain = normal(neurons, tokens) * torch.logspace(-3, -1, neurons)[:, None]
    c = 0.1 * normal(neurons, tokens) * torch.logspace(-2, 0, tokens)
    found = higher.sums(gain, c)

    p = own.log_p.exp()
    y = own.log_p + own.entropy
    q = unablated.raw - offset
    f = gain[..., None] * directions.u[:, None] + c[..., None] * (q - (p * q).sum(-1, True))
    true = (
        (p * f.expm1()).sum(-1), (p * y * f.exp()).sum(-1), (p * f * f.exp()).sum(-1)
    )  # fmt: skip
    tight = []
    for mine, exact, bound in zip(found[:3], true, found[3]):
        error = (mine - exact).abs()
        assert (error <= bound + 1e-13).all()
        tight.append((error / bound)[bound < 1])
    assert torch.cat(tight).max() > 0.3, "nothing here would find too small a bound"


def test_each_neuron_gets_the_order_that_pays(monkeypatch):
    from confreg.effects.engines.series import stages

    chosen = []

    def noted(*arguments):
        rows, orders = choose(*arguments)
        chosen.append(dict(zip(rows.tolist(), orders.tolist())))
        return rows, orders

    choose = stages.choose
    monkeypatch.setattr(stages, "choose", noted)
    layer = layer_of(False, False, False, 1.0)
    layer.down.weight.data.mul_(torch.logspace(-3, -0.7, layer.down.in_features))
    options = {"neurons": torch.arange(layer.down.in_features)}
    options["values"] = torch.ones(layer.down.in_features)
    out = measure(layer, "series", NAMES, **options)
    torch.testing.assert_close(
        out["effects"].double(), truth(layer, NAMES, **options), atol=2e-5, rtol=0, equal_nan=True
    )
    orders = [chosen[0].get(neuron, 2) for neuron in options["neurons"].tolist()]
    assert orders[0] == 2
    assert len(set(orders)) > 2
