"""How purely an ablation acts as a temperature."""

import numpy as np
import oracle
import pytest
import torch
import zoo

import confreg
from confreg.effects.temperature import tempering
from confreg.models import Model

V = 50


def logits(seed, rows):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)).double() * 2


def grid(before, after):
    """min over a fine grid of β of KL(softmax(βℓ) ‖ softmax(ℓ'))."""
    betas = torch.linspace(0.01, 4, 4_000, dtype=torch.float64)[:, None]
    log_p = torch.log_softmax(betas * before, -1)
    return (log_p.exp() * (log_p - torch.log_softmax(after, -1))).sum(-1).min()


@pytest.mark.parametrize("beta", [0.2, 0.7, 0.999, 1.0005, 1.6, 3.0])
def test_a_mere_temperature_has_share_one(beta):
    before = logits(0, 4)
    found = tempering(before, beta * before + 5)
    assert (found["divergence"] > 1e-9).all()
    torch.testing.assert_close(
        found["temperature_share"], torch.ones(4).double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("size", [1e-3, 0.1, 1.0, 4.0])
def test_the_best_temperature_is_found(size):
    before, after = logits(0, 6), logits(0, 6) * 1.3 + size * logits(1, 6)
    found = tempering(before, after)
    for i in range(6):
        best = grid(before[i], after[i])
        assert found["divergence_tempered"][i] <= best + 1e-9
        kl = found["divergence"][i]
        assert (
            abs(found["temperature_share"][i] - (1 - found["divergence_tempered"][i] / kl)) < 1e-12
        )
    assert ((found["temperature_share"] >= 0) & (found["temperature_share"] <= 1)).all()


def test_a_change_that_no_temperature_makes_has_share_zero():
    # Uncorrelated with the logits: to change the temperature only makes it worse.
    before = torch.zeros(1, V).double()
    before[0, :2] = 5.0
    after = before.clone()
    after[0, 0] += 0.3
    after[0, 1] -= 0.3
    found = tempering(before, after)
    assert found["divergence"] > 1e-3
    assert found["temperature_share"].abs() < 1e-9


def test_nothing_to_share_is_nan():
    before = logits(0, 2)
    found = tempering(before, before + 3)
    assert found["temperature_share"].isnan().all()
    assert (found["divergence"] < 1e-12).all()


def change(checkpoint, words, out, architecture, **options):
    return confreg.run(
        "entropy_neurons", model=str(checkpoint(architecture)), text=words, out=out,
        sequence_length=16, max_tokens=32, progress=False, neurons="2:3-6",
        effects=["temperature_share"], **options,
    ).load()  # fmt: skip


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("engine", ["exact", "forward"])
def test_the_recipe_s_is_the_oracle_s(checkpoint, words, tmp_path, architecture, engine):
    ds = change(checkpoint, words, tmp_path / "o.zarr", architecture, engine=engine)
    judge = oracle.Oracle(zoo.tiny(architecture)[0])
    for s in np.unique(ds["sequence"]):
        here = ds.isel(token=ds["sequence"].values == s)
        ids = torch.from_numpy(here["token_id"].values)[None]
        before, _ = judge.forward(ids)
        for i, value in enumerate(ds["ablation_value"].values):
            after = judge.replaced(ids, 2, {3 + i: value})[0]
            mine = here["effects"].isel(neuron=i)
            for t in range(i, len(after), 7):
                least = float(grid(before[0, t], after[t]))
                log_p, log_q = before[0, t].log_softmax(-1), after[t].log_softmax(-1)
                moved = float((log_p.exp() * (log_p - log_q)).sum())
                token = mine.isel(token=t)
                assert abs(token.sel(effect="divergence_total") - moved) < 1e-4
                assert abs(token.sel(effect="divergence_tempered_total") - least) < 1e-4
                if moved > 1e-3:
                    share = token.sel(effect="temperature_share")
                    assert abs(share - (1 - least / moved)) < 1e-3
    kept = ds["effects"].isel(token=ds["keep"].values).mean("token")
    kl, left = (kept.sel(effect=f"divergence_{n}") for n in ("total", "tempered_total"))
    np.testing.assert_allclose(ds["temperature_share"], 1 - left / kl, atol=1e-4)


def test_a_neuron_that_only_moves_the_norm_has_share_one(words, tmp_path):
    """w in the null space of the folded unembedding: the norm's scale is all that it changes."""
    network, tokenizer = zoo.tiny("llama", tie_word_embeddings=False)
    head, gain = network.lm_head.weight, network.model.norm.weight
    # The unembedding does not read the last direction; neuron 3 writes nowhere else.
    head.data[:, -1] = 0
    gain.data[-1] = 1.0
    column = torch.zeros(head.shape[1])
    column[-1] = 6.0
    network.model.layers[2].mlp.down_proj.weight.data[:, 3] = column
    ds = confreg.run(
        "entropy_neurons", model=Model.wrap(network, tokenizer), text=words,
        out=tmp_path / "o.zarr", sequence_length=16, max_tokens=32, progress=False,
        neurons="2:3-4", effects=["temperature_share"], engine="exact",
    ).load()  # fmt: skip
    pure, mixed = ds["effects"].sel(effect="temperature_share").values
    moved = ds["effects"].sel(effect="divergence_total").values[0] > 1e-6
    assert moved.sum() > 20
    np.testing.assert_allclose(pure[moved], 1, atol=1e-4)
    assert np.nanmean(mixed) < 0.9
    assert ds["temperature_share"][0] > 0.9999
