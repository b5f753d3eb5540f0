"""Runs ours on the layer of `effects_oracle`, as a recipe's trace would."""

import torch
from effects_oracle import LastLayer, effects, state

from confreg import effects as fx

NEURONS = torch.tensor([3, 0, 7, 20])
VALUES = torch.tensor([0.0, 1.0, -2.0, 0.5])


def counts(vocabulary):
    """Of tokens, plus one; the last rows are no token's."""
    found = torch.randint(1, 70_000, (vocabulary,), generator=torch.Generator().manual_seed(5))
    found[-5:] = 0
    return found


def frequencies(vocabulary):
    """The token-frequency direction and log p_freq, as the paper defines them, in float64."""
    real, number = vocabulary - 5, counts(vocabulary).double()
    direction = torch.zeros(vocabulary, dtype=torch.float64)
    log_p = torch.full((vocabulary,), -torch.inf, dtype=torch.float64)
    log_p[:real] = (number[:real] / number.sum()).log()
    direction[:real] = log_p[:real] - log_p[:real].mean()
    return direction / direction.norm(), log_p


def measure(
    layer: LastLayer,
    engine: str,
    names,
    neurons=NEURONS,
    values=VALUES,
    seed=1,
    autocast=False,
    **options,
):
    """What `effects.measure` returns for a layer's random state."""
    stream, activation, ids, targets = state(layer, seed=seed)
    stream, activation = stream.to(layer.head.weight), activation.to(layer.head.weight)
    copies = 1 + len(neurons) if engine == "forward" else 1
    inputs = ids.repeat(copies, 1)
    numbers = counts(layer.head.out_features)
    planes = torch.stack([numbers % 256, numbers // 256 % 256, numbers // 65536]).byte()
    batch = fx.Batch(
        inputs, len(ids), torch.arange(ids.numel()), targets, targets >= 0, 0, neurons,
        layer.down.in_features, values, names, engine=engine,
        counts=planes, **options,
    )  # fmt: skip
    with torch.no_grad():
        stream, activation = stream.repeat(copies, 1, 1), activation.repeat(copies, 1, 1)
        used = fx.ablate(activation, batch)
        residual = stream + layer.mlp(used)
        raw = layer.head(layer.norm(residual))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        readout = fx.read_readout(
            layer.norm, layer.head, residual, layer.norm.centred, layer.norm.eps,
            layer.scale, layer.softcap,
        )  # fmt: skip
        write = fx.Write(layer.down, layer.down.in_features, layer.multiplier)
        if layer.post is not None:
            before = layer.down(used) * layer.multiplier
            write = fx.Write(
                layer.down, layer.down.in_features, layer.multiplier,
                layer.post, layer.post.centred, layer.post.eps, before,
            )  # fmt: skip
        return fx.measure(batch, readout, write, activation, residual, raw)


def truth(layer: LastLayer, names, neurons=NEURONS, values=VALUES, seed=1):
    """The same effects by brute force in float64."""
    stream, activation, _, targets = state(layer, seed=seed)
    frequency, log_frequency = frequencies(layer.head.out_features)
    return effects(
        layer, stream, activation, targets, neurons, values, names, frequency, log_frequency
    )
