"""Digits: what do the hidden neurons of a small classifier do to its predictions?

No language model, no tokens, no text: a network of one hidden layer learns scikit-learn's
handwritten digits in seconds, every hidden neuron is set to its mean over the images, and the
change of the loss and of the predicted class is kept image by image.

    confreg run examples/digits.py --out runs/digits.zarr
"""

import nnsight
import numpy as np
import torch

from confreg import Axis, Label, Step, Variable, recipe
from confreg import effects as fx
from confreg.effects import compare

EFFECTS = (fx.loss.total, fx.entropy.total, fx.top1.total)
HIDDEN = 32


def data():
    """Images (1797, 64) float32 from 0 to 1, and what they show (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.data.astype(np.float32) / 16)
    return images, torch.from_numpy(digits.target)


def classifier():
    """A trained network that nnsight traces."""
    images, targets = data()
    with torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Linear(64, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 10)
        network = torch.nn.Sequential(*layers)
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(200):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(images), targets).backward()
            optimiser.step()
    return nnsight.NNsight(network.eval().requires_grad_(False))


@recipe(model=classifier)
def digits(study, *, images: int = 200):
    """Set every hidden neuron to its mean, at every image."""
    pixels, targets = data()
    neuron = Axis.of("neuron", np.arange(HIDDEN), "hidden neuron")
    image = Axis.of(
        "image", np.arange(images), "image", digit=Label(targets[:images].numpy(), "what it shows"),
        entries=lambda start, stop: (pixels, pixels[start:stop], targets[start:stop]),
    )  # fmt: skip
    names = [effect.name for effect in EFFECTS]
    units = Label([effect.units for effect in EFFECTS], "units of the effect")
    long = Label([effect.long_name for effect in EFFECTS], "description of the effect")
    effect = Axis.of(
        "effect", names, "effect of setting the neuron to its mean", effect_units=units,
        effect_long_name=long,
    )  # fmt: skip
    change = Variable("effects", ("neuron", "image", "effect"), "change of the prediction")
    loss = Variable("loss", ("image",), "loss of the classifier", "nats")
    return Step(ablate, over=(neuron, image), along=(effect,), gives=(change, loss))


def ablate(model, unit):
    """One pass for the means, one for the predictions, and one for every neuron."""
    every, images, targets = unit.image
    with model.trace(every):
        mean = nnsight.save(model[1].output.mean(0))
    with model.trace(images):
        before = nnsight.save(model[2].output)
    found = []
    for neuron in unit.neuron.tolist():
        with model.trace(images):
            model[1].output[:, neuron] = mean[neuron]
            after = nnsight.save(model[2].output)
        found.append(compare(before, after, targets, EFFECTS))
    return {"effects": torch.stack(found), "loss": fx.loss.of(before, targets)}
