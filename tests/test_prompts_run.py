"""Runs on prompts of many lengths, against plain transformers on each prompt alone."""

import numpy as np
import pytest
import torch
import zoo

import confreg

LENGTHS = (3, 30, 8, 21, 5, 13)
QUESTIONS = [
    {
        "prompt": " ".join(f"w{(5 * i + 7 * j) % 90 + 3}" for j in range(length)),
        "target": [" w11 w12", " w13"] if i % 2 else " w7",
        "category": "ab"[i % 2],
        "level": i,
    }
    for i, length in enumerate(LENGTHS)
]
NEURONS = (3, 4)


def run(checkpoint, out, architecture, layer, **options):
    return confreg.run(
        "entropy_neurons", model=str(checkpoint(architecture)), text=QUESTIONS, out=out,
        neurons=",".join(f"{layer}.{i}" for i in NEURONS), columns="category,level",
        ablation="zero", progress=False, **options,
    ).load()  # fmt: skip


def alone(network, ids, layer, neuron=None):
    """Log-probabilities (length, V) of one sequence in a batch of one, in float64."""

    def silence(module, given):
        given[0][..., neuron] = 0
        return given

    handles = []
    if neuron is not None:
        at = network.model.layers[layer].mlp.down_proj
        handles.append(at.register_forward_pre_hook(silence))
    with torch.no_grad():
        logits = network(torch.tensor([ids]), use_cache=False).logits[0, :, : zoo.ROWS]
    for handle in handles:
        handle.remove()
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize(
    ("architecture", "layer", "engine"),
    [
        ("llama", 2, "exact"),
        ("qwen3_5_text", 1, "forward"),
        pytest.param("olmo3", 1, "forward", marks=pytest.mark.slow),
        pytest.param("olmo3", 2, "series", marks=pytest.mark.slow),
        pytest.param("qwen3_5_text", 2, "series", marks=pytest.mark.slow),
    ],
)
def test_every_prompt_is_as_it_is_alone(checkpoint, tmp_path, architecture, layer, engine):
    """A hybrid and a sliding window (of 8) among them; each prompt in a unit with others."""
    ds = run(checkpoint, tmp_path / "o.zarr", architecture, layer, engine=engine)
    network, tokenizer = zoo.tiny(architecture)
    sequence = ds["sequence"].values
    for i, question in enumerate(QUESTIONS):
        first = question["target"] if isinstance(question["target"], str) else " w11 w12"
        ids = [0, *tokenizer(question["prompt"] + first, add_special_tokens=False)["input_ids"]]
        here = ds.isel(token=sequence == i)
        assert here["token_id"].values.tolist() == ids
        assert set(here["document"].values) == {i}
        assert set(here["category"].values) == {"ab"[i % 2]}
        assert set(here["level"].values) == {i}
        assert np.flatnonzero(here["keep"]).tolist() == [LENGTHS[i]]
        clean = alone(network, ids, layer)
        follow = torch.tensor(ids[1:])[:, None]
        loss = -clean[:-1].gather(1, follow)[:, 0]
        np.testing.assert_allclose(here["loss"].values[:-1], loss, atol=1e-4)
        assert np.isnan(here["loss"].values[-1])
        for column, neuron in enumerate(NEURONS):
            edited = alone(network, ids, layer, neuron)
            changed = -edited[:-1].gather(1, follow)[:, 0] - loss
            found = here["effects"].isel(neuron=column)
            np.testing.assert_allclose(
                found.sel(effect="loss_total").values[:-1], changed, atol=1e-4
            )
            entropy = -(edited.exp() * edited).sum(-1) + (clean.exp() * clean).sum(-1)
            np.testing.assert_allclose(found.sel(effect="entropy_total").values, entropy, atol=1e-4)


def test_means_are_over_what_is_kept(checkpoint, tmp_path):
    ds = run(checkpoint, tmp_path / "a.zarr", "llama", 2, keep=["last", "category=b"])
    some = np.isin(ds["document"].values, (1, 3, 5)) & (ds["target_index"].values == 0)
    np.testing.assert_array_equal(ds["keep"].values, some)
    wanted = ds["effects"].values[:, some].mean(1)
    np.testing.assert_allclose(ds["effect_mean"].values, wanted, rtol=1e-5, atol=1e-7)


def test_a_last_position_without_target_has_an_entropy_and_no_loss(checkpoint, tmp_path):
    rows = [{"prompt": question["prompt"]} for question in QUESTIONS]
    ds = confreg.run(
        "entropy_neurons", model=str(checkpoint("llama")), text=rows, keep="last",
        neurons="2.3", out=tmp_path / "o.zarr", progress=False,
    ).load()  # fmt: skip
    assert int(ds["keep"].sum()) == len(rows)
    means = ds["effect_mean"].isel(neuron=0)
    assert np.isnan(means.sel(effect="loss_total"))
    assert "effects_undefined" not in ds.attrs  # nothing that is wrong
    kept = ds["effects"].isel(neuron=0).sel(effect="entropy_total").values[ds["keep"].values]
    np.testing.assert_allclose(means.sel(effect="entropy_total"), kept.mean(), rtol=1e-5)


@pytest.mark.parametrize(("engine", "layer"), [("exact", 2), ("series", 2), ("forward", 1)])
def test_what_no_mean_is_over_is_left_out_where_only_means_are_kept(
    checkpoint, tmp_path, engine, layer
):
    """One token of a prompt is kept: the means are those of the cube, which has every token."""
    cube = run(checkpoint, tmp_path / "c.zarr", "llama", layer, engine=engine)
    reduced = run(
        checkpoint, tmp_path / "r.zarr", "llama", layer, engine=engine, reduce="token"
    )  # fmt: skip
    keep = cube["keep"].values
    assert keep.sum() == len(QUESTIONS)
    assert np.isfinite(cube["effects"].sel(effect="entropy_total").values).all()
    wanted = np.abs(cube["effects"].values[:, keep].astype(np.float64)).mean(1)
    assert wanted.max() > 1e-3
    for name in ("effect_mean", "effect_abs_mean", "te", "de", "mediated"):
        np.testing.assert_allclose(reduced[name], cube[name], rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(reduced["effect_abs_mean"], wanted, rtol=1e-4, atol=1e-6)
    if engine != "forward":
        # Those that are checked are drawn from kept tokens: a sixteenth of the pairs.
        assert reduced.attrs["error_sampled_pairs"] == max(2 * keep.sum() // 16, 1)


def test_kept_tokens_alone(checkpoint, tmp_path):
    whole = run(checkpoint, tmp_path / "w.zarr", "llama", 2, effects=["confidence_total"])
    kept = confreg.run(
        "calibration", model=str(checkpoint("llama")), text=QUESTIONS, neurons="2.3,2.4",
        ablation="zero", progress=False, out=tmp_path / "k.zarr",
    ).load()  # fmt: skip
    keep = whole["keep"].values
    mine, theirs = (ds["effects"].sel(effect="confidence_total").values for ds in (kept, whole))
    np.testing.assert_allclose(mine[:, keep], theirs[:, keep], atol=1e-7)
    assert np.isfinite(theirs).all()
    assert np.isnan(mine[:, ~keep]).all()


def test_another_answer_is_another_configuration(checkpoint, tmp_path):
    run(checkpoint, tmp_path / "o.zarr", "llama", 2)
    from confreg.errors import ConfregError

    other = [dict(q, category="c") for q in QUESTIONS]
    with pytest.raises(ConfregError, match="corpus_sha256"):
        confreg.run(
            "entropy_neurons", model=str(checkpoint("llama")), text=other, neurons="2.3,2.4",
            columns="category,level", ablation="zero", progress=False, out=tmp_path / "o.zarr",
        )  # fmt: skip
