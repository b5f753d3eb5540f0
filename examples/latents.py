"""Latents: what do the latents of a sparse autoencoder on the final residual do to predictions?

With z_j = ReLU((x − b_dec)·W_enc[:, j] + b_enc[j]) at the final residual x, setting latent j to a
value v adds (v − z_j) W_dec[j] to it. The edit says what it writes to the residual stream, so the
closed forms measure it as they measure neurons. The file is a safetensors file with W_enc (d, k),
b_enc (k), W_dec (k, d), b_dec (d).

    confreg run examples/latents.py -p file=sae.safetensors -p latents=0-63 --out runs/latents.zarr
"""

import nnsight
import numpy as np
import torch

from confreg import Axis, ConfregError, recipe, steps
from confreg import effects as fx
from confreg.effects import add_to_copies

USUAL = (fx.loss.total, fx.loss.direct, fx.entropy.total, fx.entropy.direct)


class Latents:
    """Some latents, each set to a value. Travels to the model."""

    def __init__(self, encoder, bias, decoder, centre, value):
        self.encoder, self.bias, self.decoder = encoder, bias, decoder  # (n, d), (n,), (n, d)
        self.centre, self.value = centre, value

    def __len__(self):
        return len(self.bias)

    def cut(self, start, stop):
        """Some of them."""
        some = slice(start, stop)
        return Latents(
            self.encoder[some], self.bias[some], self.decoder[some], self.centre, self.value
        )

    def delta(self, x):
        """What the latents lack to the value at x (..., d): (n, ...)."""
        encoder, bias, centre = (
            each.to(x.device) for each in (self.encoder, self.bias, self.centre)
        )
        z = ((x.float() - centre) @ encoder.T + bias).relu()
        return (self.value - z).movedim(-1, 0)

    def apply(self, residual, copies):
        """Set the j-th latent in the j-th copy of the text, which follows the text itself."""
        text = residual[: len(residual) // (1 + copies)]
        return add_to_copies(residual, copies, self.delta(text), self.decoder)

    def writes(self, state, seen):
        """What they add to the residual: δ (n, T) along W_dec (n, d)."""
        return self.delta(seen), self.decoder.to(seen.device)


@recipe(effects=USUAL, on_request=(fx.top1.total, fx.rank.total))
def latents(study, *, file: str = "", latents: str = "all", value: float = 0.0):
    """Set every chosen latent to ``value`` at every token. ``latents``: all, 7, or 0-63."""
    if not file:
        raise ConfregError("Name the autoencoder's file: -p file=sae.safetensors.")
    from safetensors.torch import load_file

    sae = {name: tensor.float() for name, tensor in load_file(file).items()}
    first, _, last = latents.partition("-")
    count = len(sae["b_enc"])
    chosen = np.arange(count) if first == "all" else np.arange(int(first), int(last or first) + 1)

    def entries(start, stop):
        at = torch.from_numpy(chosen[start:stop])
        return Latents(sae["W_enc"].T[at], sae["b_enc"][at], sae["W_dec"][at], sae["b_dec"], value)

    axis = Axis.of("latent", chosen, "latent of the autoencoder", entries=entries)
    return steps.ablation(study, set_latents, axis, study.tokens(), effects=study.effects())


def set_latents(model, unit):
    """The text once, and, where no algebra does it, once more for every latent."""
    site = model.site(unit.layer)

    with model.trace(unit.inputs):
        residual = edited = site.final_norm.input
        if unit.copies:
            site.final_norm.input = edited = unit.edits.apply(residual, unit.copies)
        block = site.measure(unit, residual, residual=edited)
        nnsight.save(block)

    return block
