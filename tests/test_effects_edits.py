"""What edits do, in copies of the text and in closed form."""

import pytest
import torch
from effects_case import NEURONS, VALUES, measure, truth
from effects_oracle import LastLayer, state

from confreg import effects as fx

NAMES = ("loss_total", "loss_direct", "entropy_total", "rank_total", "loss_frequency_direct")
MEMBERS = [torch.tensor([3, 0, 7]), torch.tensor([5]), torch.tensor([20, 1, 2, 9, 11])]
SET_VALUES = [torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.3]), torch.linspace(-1, 1, 5)]
SIDES = [torch.tensor(s, dtype=torch.int8) for s in ([0, 1, -1], [1], [-1, -1, 1, 0, 1])]
LAYERS = [
    {"centred": False}, {"centred": True, "norm_bias": True, "head_bias": True},
    {"centred": True, "post": True}, {"post": True, "softcap": 5.0, "scale": 0.6},
    {"multiplier": 0.8},
]  # fmt: skip


def close(one, other, atol=2e-5):
    torch.testing.assert_close(one, other, atol=atol, rtol=0, equal_nan=True)


@pytest.mark.parametrize("sides", [None, SIDES], ids=["plain", "clipped"])
@pytest.mark.parametrize("kind", LAYERS)
def test_sets_in_closed_form_are_sets_in_copies(kind, sides):
    layer = LastLayer(**kind)
    edits = fx.Together(MEMBERS, SET_VALUES, sides)
    found = [measure(layer, engine, NAMES, edits=edits) for engine in ("forward", "exact")]
    close(found[0]["effects"], found[1]["effects"])
    assert found[0]["effects"][:, :, 0].abs().nan_to_num().amax(-1).min() > 0.01
    sampled = measure(layer, "exact", NAMES[:3], edits=edits, sample=20)
    assert sampled["sampled"] == 20
    assert 0 < sampled["error_largest"].max() < 1e-5


def test_a_set_of_one_is_that_neuron():
    layer = LastLayer(centred=True, post=True)
    alone = fx.Together(list(NEURONS[:, None]), list(VALUES[:, None]))
    close(measure(layer, "exact", NAMES, edits=alone)["effects"].double(), truth(layer, NAMES))


def test_sets_of_a_clipped_side_do_nothing_where_nothing_is_to_be_taken_back():
    layer = LastLayer()
    _, activation, _, _ = state(layer)
    above = activation[..., 5].flatten() > 0.3
    edits = fx.Together([MEMBERS[1]], [SET_VALUES[1]], [SIDES[1]])
    effects = measure(layer, "exact", ["entropy_total"], edits=edits)["effects"][0, :, 0]
    assert 0 < above.sum() < 14
    assert (effects[~above] == 0).all()
    assert (effects[above] != 0).all()


@pytest.mark.parametrize("engine", ["forward", "exact", "series"])
def test_effects_are_wanted_at_some_tokens_only(engine):
    layer, wanted = LastLayer(), torch.arange(14) % 3 != 1
    for edits in (None, fx.Together(MEMBERS, SET_VALUES)):
        some = measure(layer, engine, NAMES, edits=edits, wanted=wanted, sample=5)
        every = measure(layer, engine, NAMES, edits=edits)
        assert some["effects"][:, ~wanted].isnan().all()
        close(some["effects"][:, wanted], every["effects"][:, wanted], 2e-6)
        assert some["loss"].shape == (14,)
        assert some["pairs"] == len(some["effects"]) * wanted.sum()


@pytest.mark.parametrize("engine", ["forward", "exact", "series"])
@pytest.mark.parametrize(("kind", "value"), [("mean", 0.0), ("percentile", 30.0)])
def test_values_found_among_the_units_own_tokens(engine, kind, value):
    layer, over = LastLayer(post=True), torch.arange(14) % 4 != 0
    edits = fx.ReplaceByOwn(NEURONS, kind, value, torch.arange(14), over)
    out = measure(layer, engine, NAMES, edits=edits)
    _, activation, _, _ = state(layer)
    chosen = activation.flatten(0, 1)[over][:, NEURONS]
    expected = chosen.mean(0) if kind == "mean" else chosen.quantile(value / 100, 0)
    close(out["ablation_value"], expected, 1e-6)
    again = measure(layer, engine, NAMES, edits=fx.Replace(NEURONS).to(out["ablation_value"]))
    assert torch.equal(out["effects"].nan_to_num(), again["effects"].nan_to_num())
    assert "ablation_value" not in again


@pytest.mark.parametrize(
    "edits",
    [
        fx.Replace(NEURONS, VALUES),
        fx.ReplaceByOwn(NEURONS[:3], "mean", 0.0, torch.arange(14), torch.ones(14).bool()),
        fx.Together(MEMBERS, SET_VALUES, SIDES),
    ],
    ids=lambda edits: type(edits).__name__,
)
def test_spans_of_edits_are_the_edits(edits):
    layer = LastLayer()
    for engine in ("forward", "exact"):
        whole = measure(layer, engine, NAMES, edits=edits)["effects"]
        parts = [
            measure(layer, engine, NAMES, edits=edits.cut(a, b))["effects"]
            for a, b in ((0, 2), (2, len(edits)))
        ]
        close(torch.cat(parts), whole, 2e-6)


def test_values_that_are_not_known_are_not_guessed():
    with pytest.raises(ValueError, match="not known yet"):
        measure(LastLayer(), "exact", NAMES, edits=fx.Replace(NEURONS))


class Steer:
    """α times directions, added to the residual: what a user writes."""

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


class Latents(Steer):
    """Two directions an edit, by what the residual itself is: of rank 2."""

    rank = 2

    def amounts(self, residual):
        encoded = torch.relu(residual @ self.w.flatten(0, 1).T)
        return -encoded.unflatten(-1, self.w.shape[:2])  # (..., n, 2)

    def cut(self, start, stop):
        return Latents(self.alpha[start:stop], self.w[start:stop])

    def apply(self, residual, copies):
        delta = self.amounts(residual[: len(residual) // (1 + copies)])
        for k in range(2):
            amount = delta[..., k].movedim(-1, 0)
            residual = fx.add_to_copies(residual, copies, amount, self.w[:, k])
        return residual

    def writes(self, state, seen):
        return self.amounts(seen).permute(1, 2, 0), self.w


@pytest.mark.parametrize("kind", LAYERS)
def test_directions_of_the_final_residual_have_the_fast_engines(kind):
    layer, generator = LastLayer(**kind), torch.Generator().manual_seed(0)
    edits = Steer(torch.tensor([0.5, -1.0, 3.0]), torch.randn(3, 16, generator=generator))
    found = [
        measure(layer, engine, NAMES, edits=edits, at="residual", sample=10)["effects"]
        for engine in ("forward", "exact", "series")
    ]
    close(found[0], found[1])
    close(found[0], found[2])
    assert found[0][..., 0].abs().nan_to_num().amax(-1).min() > 0.1


@pytest.mark.parametrize("kind", LAYERS)
def test_edits_of_several_directions_add_them_up(kind):
    layer, generator = LastLayer(**kind), torch.Generator().manual_seed(0)
    edits = Latents(torch.zeros(3), 0.3 * torch.randn(3, 2, 16, generator=generator))
    found = [
        measure(layer, engine, NAMES, edits=edits, at="residual")["effects"]
        for engine in ("forward", "exact", "series")
    ]
    close(found[0], found[1])
    close(found[0], found[2])
    assert found[0][..., 0].abs().nan_to_num().amax(-1).min() > 0.1


def test_writes_of_another_shape_are_named_with_both_shapes():
    class Wrong(Steer):
        def cut(self, start, stop):
            return Wrong(self.alpha[start:stop], self.w[start:stop])

        def writes(self, state, seen):
            return self.alpha.expand(len(seen), -1), self.w

    edits = Wrong(torch.ones(3), torch.randn(3, 16))
    with pytest.raises(ValueError, match=r"Wrong.writes returned \(14, 3\) and \(3, 16\)"):
        measure(LastLayer(), "exact", NAMES, edits=edits, at="residual")


def test_edits_without_a_closed_form_take_no_closed_form():
    with pytest.raises(ValueError, match="AttendFirst has no closed form"):
        measure(LastLayer(), "exact", NAMES, edits=fx.AttendFirst([torch.zeros(1, 2).long()], 4))


def test_flattened_activations_are_edited_like_others():
    """As OPT has them."""
    activation = torch.randn(1 + len(NEURONS), 7, 24)[:, None].expand(-1, 2, -1, -1).flatten(0, 1)
    for edits in (fx.Replace(NEURONS, VALUES), fx.Together(MEMBERS + MEMBERS[:1], SET_VALUES * 2)):
        plain = edits.apply(activation, 4)
        flat = edits.apply(activation.flatten(0, 1), 4)
        assert torch.equal(flat.view_as(plain), plain)
        assert torch.equal(plain[:2], activation[:2])
        assert not torch.equal(plain[2:], activation[2:])


def test_heads_attend_to_the_first_token():
    outputs = torch.randn(2, 5, 12)[None].expand(3, -1, -1, -1).flatten(0, 1)
    heads = fx.AttendFirst([torch.tensor([[1, 2]]), torch.tensor([[0, 1], [1, 0], [1, 3]])], 4)
    assert heads.layers() == [0, 1]
    changed = heads.apply(outputs, 2, layer=1).view(3, 2, 5, 4, 3)
    clean = outputs.view(3, 2, 5, 4, 3)
    assert torch.equal(changed[0], clean[0])
    for copy, own in ((1, [2]), (2, [0, 3])):
        for head in range(4):
            at = changed[copy, :, :, head]
            expected = clean[copy, :, :, head]
            if head in own:
                expected = expected[:, :1].expand_as(expected)
            assert torch.equal(at, expected)
    assert len(heads.cut(1, 2)) == 1
    assert heads.cut(0, 1).layers() == [1]


def test_watched_values_and_how_they_change():
    layer, watched = LastLayer(), torch.tensor([5, 3])
    edits = fx.Replace(NEURONS, VALUES)
    stream, activation, ids, targets = state(layer)

    class Upstream(fx.Replace):
        """Moves what is seen, as an edit of an earlier layer does."""

        def apply(self, activation, copies):
            return activation

    seen = torch.cat((activation, activation + 1, activation - 2))
    unit = fx.Unit(
        fx.Tokens(ids, torch.arange(14), targets, targets >= 0), Upstream(NEURONS[:2], VALUES[:2]),
        fx.Forward(), [fx.loss.total], watched=watched, changes="all",
    )  # fmt: skip
    from effects_case import site_of

    with torch.no_grad():
        residual = stream.repeat(3, 1, 1) + layer.mlp(seen)
        raw = layer.head(layer.norm(residual))
        out = site_of(layer, seen, None, residual, raw).measure(unit, seen)
        unit.changes = "sums"
        sums = site_of(layer, seen, None, residual, raw).measure(unit, seen)
    assert out["activation"].shape == (2, 14)
    assert torch.equal(out["activation"], activation.flatten(0, 1)[:, watched].T)
    expected = torch.tensor([1.0, -2.0])[:, None, None].expand(2, 14, 2)
    close(out["activation_change"], expected, 1e-6)
    close(out["activation_change_sum"], 12 * expected[:, 0].double(), 1e-5)
    close(out["activation_change_abs_sum"], 12 * expected[:, 0].abs().double(), 1e-5)
    assert set(out) - set(sums) == {"activation", "activation_change"}
    with pytest.raises(ValueError, match="engine Forward only"):
        fx.Unit(unit.tokens, edits, fx.Exact(), (), watched=watched, changes="sums")


@pytest.mark.parametrize(
    ("edits", "effects", "last", "expected"),
    [
        (fx.Replace(NEURONS), [fx.loss.total], True, fx.Series),
        (fx.Replace(NEURONS), [fx.rank.total, fx.entropy.direct], True, fx.Series),
        (fx.Replace(NEURONS), [fx.rank.total], True, fx.Exact),
        (fx.Replace(NEURONS), [fx.loss.total], False, fx.Forward),
        (fx.Replace(NEURONS), [fx.loss.total, fx.norm_scale.total], True, fx.Forward),
        (fx.Together(MEMBERS, SET_VALUES), [fx.loss.total], True, fx.Exact),
        (fx.AttendFirst([], 4), [fx.loss.total], True, fx.Forward),
        (Steer(VALUES, VALUES), [fx.loss.total], True, fx.Series),
        (Latents(VALUES, VALUES), [fx.loss.total], True, fx.Exact),
    ],
)
def test_edits_and_measures_say_which_engine_fits(edits, effects, last, expected):
    assert isinstance(fx.fitting(edits, effects, last), expected)


def test_what_a_step_carries_by_default():
    entries = fx.Entries(token="t", neuron=[1, 2])
    assert entries.token == "t"
    assert entries.neuron == [1, 2]
