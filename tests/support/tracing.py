"""Measure neurons of a `confreg.models.Model` by one trace, as a recipe does."""

from __future__ import annotations

import nnsight
import torch

from confreg import effects
from confreg.models import Model

EFFECTS = (
    "loss_total",
    "loss_direct",
    "entropy_total",
    "entropy_direct",
    "rank_total",
    "top1_total",
)


def batch(
    model: Model, ids: torch.Tensor, values: torch.Tensor, layer: int, engine: str
) -> effects.Batch:
    """Every token of ``ids`` and the first ``len(values)`` neurons of a layer."""
    targets = ids.roll(-1, 1)
    targets[:, -1] = -1
    copies = 1 + len(values) if engine == "forward" else 1
    return effects.Batch(
        inputs=ids.repeat(copies, 1),
        rows=len(ids),
        positions=torch.arange(ids.numel()),
        targets=targets.flatten(),
        keep=targets.flatten() >= 0,
        layer=layer,
        neurons=torch.arange(len(values)),
        width=model.n_neurons,
        values=values,
        effects=EFFECTS,
        engine=engine,
    )


def measure(model: Model, batch: effects.Batch) -> dict[str, torch.Tensor]:
    """What `confreg.effects.measure` returns."""
    down, norm, head = model.down_proj(batch.layer), model.final_norm, model.unembedding
    post, spec = model.post_norm(batch.layer), model.readout
    with model.trace(batch.inputs):
        activation = down.input
        down.input = effects.ablate(activation, batch)
        post_input = post.input if post is not None else None
        residual = norm.input
        raw = head.output
        readout = effects.read_readout(norm, head, residual, **spec)
        write = effects.Write(down, post_norm=post, post_input=post_input, **model.write_spec)
        block = nnsight.save(effects.measure(batch, readout, write, activation, residual, raw))
    return block
