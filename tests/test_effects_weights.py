"""Weight-space statistics against their definitions, on the dense folded unembedding."""

import pytest
import torch
from effects_oracle import LastLayer

from confreg import effects as fx
from confreg.effects.weights import choose_null_dims


def definition(layer, neurons, k, real):
    """Straight from the paper: cosines with every row, and an SVD."""
    w = layer.down.weight.double().T[neurons] * layer.multiplier
    d = w.shape[-1]
    if layer.post is not None:
        if layer.post.centred:
            w = w - w.mean(-1, keepdim=True)
        w = w * (layer.post.weight.double() + 1)
    gain = layer.norm.weight.double() + float(layer.norm.shifted)
    folded = layer.head.weight.double()[:real] * gain
    if layer.norm.centred:
        centre = torch.eye(d, dtype=torch.float64) - 1 / d
        folded, w = folded @ centre, w @ centre
    cosine = torch.nn.functional.cosine_similarity(w[:, None], folded[None], dim=-1)
    left, singular, _ = torch.linalg.svd(folded.T, full_matrices=False)
    return {
        "w_out_norm": w.norm(dim=-1),
        "logit_var": cosine.var(-1, unbiased=True),
        "null_fraction": (w @ left[:, d - k :]).norm(dim=-1) / w.norm(dim=-1),
        "singular_value": singular,
    }


@pytest.mark.parametrize("memory", [2**29, 4000])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_statistics_follow_their_definitions(centred, post, memory):
    layer = LastLayer(centred=centred, norm_bias=True, head_bias=True, post=post)
    neurons = torch.tensor([5, 1, 23])
    like = torch.randn(3, 16)
    norm = layer.norm
    with torch.no_grad():
        readout = fx.read_readout(norm, layer.head, like, centred, norm.eps)
        write = fx.Write(layer.down, 24)
        if post:
            write = fx.Write(
                layer.down, 24, 1.0, layer.post, centred, layer.post.eps, torch.randn(3, 16)
            )
        found = fx.weight_statistics(
            readout, write, neurons, like, null_dims=3, vocab_real=91, memory=memory
        )
        expected = definition(layer, neurons, 3, 91)
    assert found["null_dims"] == 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, atol=2e-5, rtol=2e-5)


def test_null_dims_follow_a_sharp_drop_and_else_one_per_cent():
    smooth = torch.linspace(10, 30, 600)
    assert choose_null_dims(smooth) == 6
    sharp = smooth.clone()
    sharp[:12] = torch.linspace(2, 3, 12)
    assert choose_null_dims(sharp) == 12
    sharp[0] = 0  # LayerNorm's constant direction is no drop
    assert choose_null_dims(sharp) == 12
    assert choose_null_dims(torch.linspace(1, 2, 8)) == 1
