"""Measure neurons of a `confreg.models.Model` by the trace of a recipe."""

from __future__ import annotations

import functools

import torch
import zoo
from confreg.recipes.entropy_neurons import ablate

from confreg import effects as fx
from confreg.models import Model

CHOSEN = (
    fx.loss.total,
    fx.loss.direct,
    fx.entropy.total,
    fx.entropy.direct,
    fx.rank.total,
    fx.top1.total,
)
EFFECTS = tuple(effect.name for effect in CHOSEN)
ENGINES = {"forward": fx.Forward, "exact": fx.Exact, "series": fx.Series}


@functools.cache
def model_of(architecture: str) -> Model:
    """A tiny random model, made once for all files of tests: nothing may change it."""
    return Model.wrap(*zoo.tiny(architecture, unsaved=True))


def all_tokens(ids: torch.Tensor) -> fx.Tokens:
    """Every token of ``ids`` (B, L); those that have a next token are kept."""
    targets = ids.roll(-1, 1)
    targets[:, -1] = -1
    targets = targets.flatten()
    return fx.Tokens(ids, torch.arange(ids.numel()), targets, targets >= 0)


def unit_of(ids: torch.Tensor, values: torch.Tensor, layer: int, engine: str) -> fx.Unit:
    """Every token of ``ids`` and the first ``len(values)`` neurons of a layer."""
    edits = fx.Replace(torch.arange(len(values)), values)
    return fx.Unit(all_tokens(ids), edits, ENGINES[engine](), CHOSEN, layer=layer)


def measure(model: Model, unit: fx.Unit) -> dict[str, torch.Tensor]:
    """What `confreg.effects.Site.measure` returns."""
    with torch.no_grad():
        return ablate(model, unit)
