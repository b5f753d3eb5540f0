"""Steering: what does adding a direction to the residual stream do to the model's confidence?

α times a direction is added at every token to the residual stream that enters a layer. The
direction is the output weight of a neuron (``-p direction=29.1102``), or a row of a file
(``-p direction=steer.npy:3``, or ``.safetensors``, whose first tensor is taken). α counts multiples
of the direction as it is.

    confreg run examples/steering.py -p direction=29.1102 -p layer=20 --out runs/steering.zarr
"""

import nnsight
import numpy as np
import torch

from confreg import Axis, Derivation, Step, Variable, recipe, steps
from confreg import effects as fx
from confreg.effects import add_to_copies

EFFECTS = (fx.entropy.total, fx.loss.total, fx.norm_scale.total)


class Steer:
    """Multiples of one direction, added at every token. Travels to the model."""

    def __init__(self, alphas, direction):
        self.alphas, self.direction = alphas, direction

    def __len__(self):
        return len(self.alphas)

    def apply(self, residual, copies):
        """Add α_j w to the j-th copy of the text."""
        return add_to_copies(residual, copies, self.alphas, self.direction.expand(copies, -1))


@recipe(effects=EFFECTS)
def steering(study, *, direction: str = "29.1102", layer: int = -2, alphas: str = "-2,-1,0,1,2,4"):
    """Add α times a direction to the residual stream that enters a layer."""
    tokens = study.tokens()
    values = np.array([float(alpha) for alpha in alphas.split(",")], dtype=np.float32)
    width = Axis.of("width", np.arange(study.model.about.d_model), "coordinate of the residual")
    alpha = Axis.of("alpha", values, "multiple of the direction that is added", "1")
    found = Variable("direction", ("width",), "direction that is added")
    if ":" in direction or direction.endswith((".npy", ".safetensors")):
        row = from_file(direction)
        read = Derivation(lambda ds: {"direction": row}, (found,), along=(width,))
    else:
        neuron = study.neurons(spec=direction)
        unit = fx.Entries(
            layer=int(neuron.layer[0]), index=neuron.entries(0, 1).index, inputs=study.two_tokens
        )
        read = Step(output_weight, (), (found,), along=(width,), unit=lambda *_: unit)

    def edits(start, stop, stored):
        return Steer(torch.from_numpy(values[start:stop]), torch.from_numpy(stored["direction"]))

    return [
        read,
        steps.ablation(
            study, steer, alpha, tokens, effects=study.effects(), edits=edits, layer=layer
        ),
    ]


def steer(model, unit):
    """The text once, and once more for every α."""
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        residual = site.residual.input
        site.residual.input = unit.edits.apply(residual, unit.copies)
        block = site.measure(unit, residual)
        nnsight.save(block)

    return block


def output_weight(model, unit):
    """A neuron's output weight, by calling modules before any layer has run."""
    site = model.site(unit.layer)

    with model.trace(unit.inputs) as tracer:
        like = site.begin.input
        weight = nnsight.save(site.write_of(like).weights(unit.index, like)[0].cpu())
        tracer.stop()

    return {"direction": weight}


def from_file(name):
    """A row of a .npy or .safetensors file, (d,) float32."""
    path, _, row = name.partition(":")
    if path.endswith(".npy"):
        table = np.load(path)
    else:
        from safetensors.numpy import load_file

        table = next(iter(load_file(path).values()))
    return np.atleast_2d(table)[int(row or 0)].astype(np.float32)
