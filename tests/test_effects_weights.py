"""Weight-space statistics against their definitions, on the dense folded unembedding."""

from types import SimpleNamespace

import pytest
import torch
import zoo
from effects_case import counts, frequencies, site_of, unit_of
from effects_oracle import LastLayer

from confreg import effects as fx
from confreg.effects.weights import choose_null_dims

HOLES = torch.ones(97, dtype=torch.bool)
HOLES[[0, 13, 50, 91, 92, 96]] = False
OWNED = torch.arange(97) < 91


def folded_unembedding(layer, owned, centre):
    """W_U diag(γ) P of the rows that tokens own, float64; ``centre`` takes off the mean row."""
    gain = layer.norm.weight.double() + float(layer.norm.shifted)
    folded = layer.head.weight.double()[owned] * gain
    if layer.norm.centred:
        folded = folded - folded.mean(-1, keepdim=True)
    return folded - folded.mean(0) if centre else folded


def written(layer, neurons):
    """What neurons add to the residual as the final norm sees it, float64."""
    w = layer.down.weight.double().T[neurons] * layer.multiplier
    if layer.post is not None:
        if layer.post.centred:
            w = w - w.mean(-1, keepdim=True)
        w = w * (layer.post.weight.double() + 1)
    return w - w.mean(-1, keepdim=True) if layer.norm.centred else w


def definition(layer, neurons, k, owned, centre):
    """Straight from the paper: cosines with every row, and an SVD."""
    w, folded = written(layer, neurons), folded_unembedding(layer, owned, centre)
    cosine = torch.nn.functional.cosine_similarity(w[:, None], folded[None], dim=-1)
    left, singular, _ = torch.linalg.svd(folded.T, full_matrices=False)
    return {
        "w_out_norm": w.norm(dim=-1),
        "logit_var": cosine.var(-1, unbiased=True),
        "null_fraction": (w @ left[:, w.shape[-1] - k :]).norm(dim=-1) / w.norm(dim=-1),
        "singular_value": singular,
    }


def with_common_row(layer, size=20.0):
    """Random unembeddings have no row in common; trained ones do."""
    generator = torch.Generator().manual_seed(3)
    layer.head.weight.data += size * torch.randn(1, 16, generator=generator)
    return layer


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("owned", [OWNED, HOLES], ids=["padded", "holes"])
@pytest.mark.parametrize("memory", [2**29, 4000])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_statistics_follow_their_definitions(centred, post, memory, owned, centre):
    layer = LastLayer(centred=centred, norm_bias=True, head_bias=True, post=post)
    layer = with_common_row(layer)
    neurons = torch.tensor([5, 1, 23])
    with torch.no_grad():
        found = fx.weight_statistics(
            site_of(layer), neurons, torch.randn(3, 16), null_dims=3, owned=owned,
            memory=memory, centre_vocabulary=centre,
        )  # fmt: skip
        expected = definition(layer, neurons, 3, owned, centre)
        other = definition(layer, neurons, 3, owned, not centre)
    assert found["null_dims"] == 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, atol=2e-5, rtol=2e-5)
    assert (expected["logit_var"] / other["logit_var"] - 1).abs().min() > 0.2, "nothing to miss"


def test_all_rows_take_part_unless_told():
    layer = with_common_row(LastLayer())
    like, neurons = torch.randn(3, 16), torch.tensor([2])
    every = torch.ones(97, dtype=torch.bool)
    with torch.no_grad():
        found = [
            fx.weight_statistics(site_of(layer), neurons, like, owned=o) for o in (None, every)
        ]
    assert torch.equal(found[0]["logit_var"], found[1]["logit_var"])


def test_a_common_row_far_larger_than_the_rest_costs_no_digits():
    """In float64 all along: not the difference of two large products."""
    layer = with_common_row(LastLayer(centred=True), size=1e4).double()
    neurons = torch.arange(24)
    with torch.no_grad():
        found = fx.weight_statistics(site_of(layer), neurons, torch.zeros(1, 16).double())
        expected = definition(layer, neurons, found["null_dims"], torch.ones(97).bool(), True)
    for name in ("logit_var", "null_fraction"):
        torch.testing.assert_close(found[name].double(), expected[name], atol=1e-4, rtol=1e-3)


def test_a_softcap_sees_what_all_logits_share_so_the_vocabulary_is_not_centred():
    layer = with_common_row(LastLayer(softcap=5.0))
    neurons, like = torch.tensor([5, 1, 23]), torch.randn(3, 16)
    with torch.no_grad():
        found = fx.weight_statistics(site_of(layer), neurons, like, null_dims=3)
        expected = definition(layer, neurons, 3, torch.ones(97).bool(), False)
    torch.testing.assert_close(
        found["logit_var"].double(), expected["logit_var"], atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("memory", [2**29, 4000])
@pytest.mark.parametrize("centred", [False, True])
def test_the_cosine_with_the_frequencies_is_pearsons_r(centred, memory, centre):
    layer = with_common_row(LastLayer(centred=centred, norm_bias=True))
    planes = unit_of(layer, fx.Replace(torch.tensor([0])), fx.Exact(), (), tokens()).counts
    with torch.no_grad():
        found = fx.frequency_cosines(
            [site_of(layer)] * 2, torch.randn(3, 16), planes, memory, centre_vocabulary=centre
        )
    owned = counts(97) > 0
    pushed = written(layer, torch.arange(24)) @ folded_unembedding(layer, owned, False).T
    direction, log_p = frequencies(97)
    if centre:
        both = torch.cat((log_p[owned][None], pushed))
        expected = torch.corrcoef(both)[0, 1:]
    else:
        expected = torch.nn.functional.cosine_similarity(pushed, direction[owned][None], dim=-1)
    assert found.shape == (2, 24)
    torch.testing.assert_close(found[0].double(), expected, atol=1e-5, rtol=1e-5)


def tokens():
    return fx.Tokens(torch.zeros(1, 2).long(), torch.arange(2), torch.ones(2).long(), [True] * 2)


def transformer_lens(network):
    """W_U (d, V) and W_out (width, d) of the last layer as TransformerLens itself folds them."""
    from transformer_lens.weight_processing import ProcessWeights

    body, last = network.transformer, network.transformer.h[-1]
    state = {
        "embed.W_E": body.wte.weight,
        "pos_embed.W_pos": body.wpe.weight,
        "blocks.0.attn.W_O": last.attn.c_proj.weight.unflatten(0, (4, 8)),
        "blocks.0.attn.b_O": last.attn.c_proj.bias,
        "blocks.0.mlp.W_out": last.mlp.c_proj.weight,
        "blocks.0.mlp.b_out": last.mlp.c_proj.bias,
        "ln_final.w": body.ln_f.weight,
        "ln_final.b": body.ln_f.bias,
        "unembed.W_U": network.lm_head.weight.T,
        "unembed.b_U": torch.zeros(len(network.lm_head.weight)),
    }
    state = {name: tensor.detach().double() for name, tensor in state.items()}
    size = {"d_model": 32, "d_vocab": len(network.lm_head.weight), "n_heads": 4, "d_head": 8}
    # What the layer reads is nothing to what it writes: the layers' own norms are left alone.
    state = ProcessWeights.fold_layer_norm(state, SimpleNamespace(n_layers=0, **size))
    state = ProcessWeights.center_writing_weights(state, SimpleNamespace(n_layers=1, **size))
    state = ProcessWeights.center_unembed(state, SimpleNamespace(**size))
    return state["unembed.W_U"], state["blocks.0.mlp.W_out"]


def test_they_are_what_the_papers_library_folds():
    network, _ = zoo.tiny("gpt2", tie_word_embeddings=False)
    head = network.lm_head.weight.data
    head += 3 * torch.randn(1, head.shape[1], generator=torch.Generator().manual_seed(0))
    readout = {"centred": True, "eps": network.config.layer_norm_epsilon}
    down = network.transformer.h[-1].mlp.c_proj
    site = fx.Site(
        down, None, None, network.transformer.ln_f, network.lm_head, readout=readout,
        write={"width": 48},
    )  # fmt: skip
    with torch.no_grad():
        found = fx.weight_statistics(site, torch.arange(48), torch.zeros(1, 32))
        unembedding, w_out = transformer_lens(network)
        cosine = torch.nn.functional.cosine_similarity(w_out[:, None], unembedding.T[None], dim=-1)
        u, singular, _ = torch.linalg.svd(unembedding)
        k = found["null_dims"]
        share = (w_out @ u[:, -k:]).norm(dim=-1) / w_out.norm(dim=-1)
        plain = fx.weight_statistics(
            site, torch.arange(48), torch.zeros(1, 32), centre_vocabulary=False
        )
    close = {"atol": 2e-5, "rtol": 2e-5}
    torch.testing.assert_close(found["logit_var"].double(), cosine.var(-1), **close)
    torch.testing.assert_close(found["singular_value"].double(), singular, **close)
    torch.testing.assert_close(found["null_fraction"].double(), share, **close)
    assert (plain["logit_var"] / found["logit_var"]).median() < 0.7, "nothing to miss"


def test_null_dims_follow_a_sharp_drop_and_else_one_per_cent():
    smooth = torch.linspace(10, 30, 600)
    assert choose_null_dims(smooth) == 6
    sharp = smooth.clone()
    sharp[:12] = torch.linspace(2, 3, 12)
    assert choose_null_dims(sharp) == 12
    sharp[0] = 0  # LayerNorm's constant direction is no drop
    assert choose_null_dims(sharp) == 12
    assert choose_null_dims(torch.linspace(1, 2, 8)) == 1
