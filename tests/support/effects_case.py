"""Ours on the layer of `effects_oracle`, as a recipe's trace would."""

import torch
from effects_oracle import LastLayer, effects, state

from confreg import effects as fx
from confreg.effects import measures

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


class Read:
    """A module in a trace: what goes into it and comes out of it, as nnsight's envoys have it."""

    def __init__(self, module, given=None, found=None):
        self.module, self.input, self.output = module, given, found

    def __call__(self, x):
        return self.module(x)


EFFECTS = {
    effect.name: effect
    for one in vars(measures).values()
    if isinstance(one, fx.Measure)
    for effect in (getattr(one, pathway) for pathway in one.pathways)
}
ENGINES = {"forward": fx.Forward, "exact": fx.Exact, "series": fx.Series}


def chosen(names):
    """Effects by their names, or as they are."""
    return [EFFECTS[name] if isinstance(name, str) else name for name in names]


def site_of(layer, seen=None, mlp=None, residual=None, raw=None):
    """The `Site` of a layer, with what a pass has read."""
    readout = {
        "centred": layer.norm.centred, "eps": layer.norm.eps, "scale": layer.scale,
        "softcap": layer.softcap,
    }  # fmt: skip
    write = {"width": layer.down.in_features, "multiplier": layer.multiplier}
    post = None
    if layer.post is not None:
        write |= {"post_centred": layer.post.centred, "post_eps": layer.post.eps}
        post = Read(layer.post, mlp)
    return fx.Site(
        Read(layer.down, seen), None, None, Read(layer.norm, residual),
        Read(layer.head, found=raw), post, readout=readout, write=write,
    )  # fmt: skip


def unit_of(layer, edits, engine, names, tokens, **options):
    """A `Unit` with token counts."""
    numbers = counts(layer.head.out_features)
    planes = torch.stack([numbers % 256, numbers // 256 % 256, numbers // 65536]).byte()
    return fx.Unit(tokens, edits, engine, chosen(names), **{"counts": planes, **options})


def measure(
    layer: LastLayer,
    engine,
    names,
    neurons=NEURONS,
    values=VALUES,
    seed=1,
    autocast=False,
    tolerance=1e-5,
    edits=None,
    wanted=None,
    at="neurons",
    **options,
):
    """What `Site.measure` returns for a layer's random state.

    ``at``: edits change the neurons, or the final residual.
    """
    stream, activation, ids, targets = state(layer, seed=seed)
    stream, activation = stream.to(layer.head.weight), activation.to(layer.head.weight)
    if isinstance(engine, str):
        engine = fx.Series(tolerance) if engine == "series" else ENGINES[engine]()
    edits = fx.Replace(neurons, values) if edits is None else edits
    tokens = fx.Tokens(ids, torch.arange(ids.numel()), targets, targets >= 0, wanted)
    unit = unit_of(layer, edits, engine, names, tokens, **options)
    with torch.no_grad():
        copies = 1 + unit.copies
        stream, activation = stream.repeat(copies, 1, 1), activation.repeat(copies, 1, 1)
        used = activation
        if unit.copies and at == "neurons":
            used = edits.apply(activation, unit.copies)
        mlp = layer.down(used) * layer.multiplier
        residual = seen = stream + layer.mlp(used)
        if unit.copies and at == "residual":
            residual = edits.apply(residual, unit.copies)
        seen = activation if at == "neurons" else seen
        raw = layer.head(layer.norm(residual))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return site_of(layer, activation, mlp, residual, raw).measure(unit, seen)


def truth(layer: LastLayer, names, neurons=NEURONS, values=VALUES, seed=1):
    """The same effects by brute force in float64."""
    stream, activation, _, targets = state(layer, seed=seed)
    frequency, log_frequency = frequencies(layer.head.out_features)
    names = [name if isinstance(name, str) else name.name for name in names]
    return effects(
        layer, stream, activation, targets, neurons, values, names, frequency, log_frequency
    )
