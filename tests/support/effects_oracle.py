"""A last layer in plain float64 torch, and its ablation by brute force. Knows nothing of ours."""

import torch
from torch import nn


class Norm(nn.Module):
    """LayerNorm or RMSNorm, with or without a bias, Gemma's 1 + weight included."""

    def __init__(self, d, centred, bias, eps, shifted=False):
        super().__init__()
        self.centred, self.eps, self.shifted = centred, eps, shifted
        self.weight = nn.Parameter(torch.rand(d) + 0.5 - float(shifted))
        self.bias = nn.Parameter(torch.randn(d)) if bias else None

    def scale(self, x):
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return (x.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def forward(self, x, scale=None):
        scale = self.scale(x) if scale is None else scale
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        out = x / scale * (self.weight + float(self.shifted))
        return out if self.bias is None else out + self.bias


class LastLayer(nn.Module):
    """down-projection (+ post-norm), residual stream, final norm, unembedding, scale, softcap."""

    def __init__(
        self,
        d=16,
        width=24,
        vocabulary=97,
        centred=False,
        norm_bias=False,
        head_bias=False,
        post=False,
        softcap=None,
        scale=1.0,
        multiplier=1.0,
        eps=1e-3,
        sharpness=1.0,
        seed=0,
    ):
        super().__init__()
        torch.manual_seed(seed)
        self.down = nn.Linear(width, d, bias=norm_bias)
        self.down.weight.data.mul_(3)
        self.post = Norm(d, centred, norm_bias, eps, shifted=True) if post else None
        self.norm = Norm(d, centred, norm_bias, eps, shifted=post)
        self.head = nn.Linear(d, vocabulary, bias=head_bias)
        self.head.weight.data.normal_(0, sharpness)
        self.softcap, self.scale, self.multiplier = softcap, scale, multiplier

    def mlp(self, activation):
        out = self.down(activation) * self.multiplier
        return out if self.post is None else self.post(out)

    def finish(self, raw):
        logits = raw * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def run(self, stream, activation, scale=None):
        """Final residual and final logits; ``scale`` freezes the final norm's divisor."""
        residual = stream + self.mlp(activation)
        return residual, self.finish(self.head(self.norm(residual, scale)))


def state(layer, rows=2, length=7, seed=1):
    """Random residual stream, activations and token ids."""
    generator = torch.Generator().manual_seed(seed)
    d, width = layer.down.out_features, layer.down.in_features
    stream = torch.randn(rows, length, d, generator=generator)
    activation = torch.randn(rows, length, width, generator=generator)
    ids = torch.randint(layer.head.out_features, (rows, length), generator=generator)
    targets = torch.full((rows, length), -1)
    targets[:, :-1] = ids[:, 1:]
    return stream, activation, ids, targets.reshape(-1)


def measures(logits, targets, log_frequency=None):
    """Loss, entropy, rank, top-1 and KL from the frequency distribution, token by token."""
    log_p = torch.log_softmax(logits, -1)
    rows = []
    for row, target in zip(log_p, targets.tolist()):
        found = {
            "loss": -row[target].item() if target >= 0 else float("nan"),
            "entropy": -(row.exp() * row).sum().item(),
            "rank": (row > row[target]).sum().item() if target >= 0 else -1,
            "top1": row.argmax().item(),
            "probability": row[target].exp().item() if target >= 0 else float("nan"),
            "margin": (row.topk(2).values[0] - row.topk(2).values[1]).item(),
        }
        found["confidence"] = row.exp().max().item()
        hit = float(row.argmax().item() == target)
        found["correct"] = hit if target >= 0 else float("nan")
        found["reciprocal_rank"] = 1 / (1 + found["rank"]) if target >= 0 else float("nan")
        if log_frequency is not None:
            p = log_frequency.exp()
            real = p > 0
            found["kl_frequency"] = (p * (log_frequency - row))[real].sum().item()
        rows.append(found)
    return rows


def effects(
    layer, stream, activation, targets, neurons, values, names, frequency=None, log_frequency=None
):
    """Effects (n, T, E) float64 by running the layer again for every neuron."""
    layer, stream, activation = layer.double(), stream.double(), activation.double()
    with torch.no_grad():
        residual, logits = layer.run(stream, activation)
        flat = logits.flatten(0, 1)
        clean = measures(flat, targets, log_frequency)
        out = torch.empty(len(neurons), len(targets), len(names), dtype=torch.float64)
        for i, (neuron, value) in enumerate(zip(neurons.tolist(), values.tolist())):
            changed = activation.clone()
            changed[..., neuron] = value
            after = {
                "total": layer.run(stream, changed)[1].flatten(0, 1),
                "direct": layer.run(stream, changed, layer.norm.scale(residual))[1].flatten(0, 1),
            }
            if frequency is not None:
                v = frequency.double()
                lost = (flat - after["total"]) @ v
                after["frequency_direct"] = after["total"] + lost[:, None] * v
            for e, name in enumerate(names):
                variant = next(
                    k for k in ("frequency_direct", "direct", "total") if name.endswith("_" + k)
                )
                measure = name.removesuffix("_" + variant)
                found = measures(after[variant], targets, log_frequency)
                for t in range(len(targets)):
                    a, b = found[t][measure], clean[t][measure]
                    out[i, t, e] = float(a != b) if measure == "top1" else a - b
    layer.float()
    return out
