"""What is known once per run: weight-space statistics and ablation values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import nnsight
import numpy as np
import torch

from confreg import effects
from confreg.errors import ConfregError
from confreg.execution.batches import token_block, token_counts

if TYPE_CHECKING:
    from confreg.execution.plan import Plan
    from confreg.models import Model


def weight_statistics(plan: Plan, model: Model) -> dict[str, np.ndarray]:
    """Weight-space statistics of the plan's neurons, and the unembedding's spectrum.

    ``w_out_norm``, ``logit_var``, ``null_fraction`` (n,), ``singular_value`` (d,), ``null_dims``.
    No token goes through the model: in this process the modules are called by themselves,
    on a server within a trace of two tokens.
    """
    found = []
    for layer in plan.neurons.layers:
        index = torch.from_numpy(plan.neurons.index[plan.neurons.layer == layer].copy())
        measure = _weights_on_server if plan.remote else _weights_here
        found.append(measure(plan, model, layer, index))
    joined = {k: _array(v) for k, v in found[0].items()}
    for name in ("w_out_norm", "logit_var", "null_fraction"):
        joined[name] = np.concatenate([_array(f[name]) for f in found])
    return joined


def _weights_here(plan: Plan, model: Model, layer: int, index: torch.Tensor) -> dict[str, Any]:
    down_proj, post_norm = model.down_proj(layer)._module, model.post_norm(layer)
    final_norm, unembedding = model.final_norm._module, model.unembedding._module
    like = torch.zeros(1, model.d_model, dtype=model.torch_dtype, device=model.device)
    readout = effects.read_readout(final_norm, unembedding, like, **model.readout)
    post = None if post_norm is None else post_norm._module
    write = effects.Write(down_proj, post_norm=post, post_input=like, **model.write_spec)
    return effects.weight_statistics(readout, write, index, like, **_options(plan, model))


def _weights_on_server(plan: Plan, model: Model, layer: int, index: torch.Tensor) -> dict[str, Any]:
    down_proj, post_norm = model.down_proj(layer), model.post_norm(layer)
    final_norm, unembedding = model.final_norm, model.unembedding
    readout_spec, write_spec, options = model.readout, model.write_spec, _options(plan, model)
    with model.trace(token_block(plan.table, 0, 2).inputs):
        like = final_norm.input
        readout = effects.read_readout(final_norm, unembedding, like, **readout_spec)
        write = effects.Write(down_proj, post_norm=post_norm, post_input=like, **write_spec)
        found = effects.weight_statistics(readout, write, index, like, **options)
        nnsight.save(found)
    return found


def frequency_cosines(plan: Plan, model: Model) -> np.ndarray:
    """cos(W_U(γ∘w), v) of every neuron of the model, (layers, neurons of a layer) float32.

    Layers that were not asked for are NaN, unless the parameter ``all_layers`` is set.
    """
    every = range(model.n_layers) if plan.parameters.get("all_layers") else plan.neurons.layers
    layers = list(every)
    measure = _cosines_on_server if plan.remote else _cosines_here
    found = np.full((model.n_layers, model.n_neurons), np.nan, dtype=np.float32)
    found[layers] = _array(measure(plan, model, layers, token_counts(plan)))
    return found


def _cosines_here(plan: Plan, model: Model, layers: list[int], counts: Any) -> torch.Tensor:
    final_norm, unembedding = model.final_norm._module, model.unembedding._module
    like = torch.zeros(1, model.d_model, dtype=model.torch_dtype, device=model.device)
    readout = effects.read_readout(final_norm, unembedding, like, **model.readout)
    writes = []
    for layer in layers:
        envoy = model.post_norm(layer)
        post = None if envoy is None else envoy._module
        spec = {"post_norm": post, "post_input": like, **model.write_spec}
        writes.append(effects.Write(model.down_proj(layer)._module, **spec))
    options = {"vocab_real": model.vocab_real, "memory": plan.memory}
    return effects.frequency_cosines(readout, writes, like, counts, **options)


def _cosines_on_server(plan: Plan, model: Model, layers: list[int], counts: Any) -> torch.Tensor:
    projections = [(model.down_proj(layer), model.post_norm(layer)) for layer in layers]
    final_norm, unembedding = model.final_norm, model.unembedding
    readout_spec, write_spec = model.readout, model.write_spec
    options = {"vocab_real": model.vocab_real, "memory": plan.memory}
    with model.trace(token_block(plan.table, 0, 2).inputs):
        like = final_norm.input
        readout = effects.read_readout(final_norm, unembedding, like, **readout_spec)
        writes = [
            effects.Write(down, post_norm=post, post_input=like, **write_spec)
            for down, post in projections
        ]
        found = effects.frequency_cosines(readout, writes, like, counts, **options)
        nnsight.save(found)
    return found


def _options(plan: Plan, model: Model) -> dict[str, Any]:
    return {
        "null_dims": plan.parameters.get("null_dims"),
        "vocab_real": model.vocab_real,
        "memory": plan.memory,
    }


def ablation_values(
    plan: Plan, model: Model, advance: Callable[[int], None] = lambda tokens: None
) -> np.ndarray:
    """Ablation values of the plan's neurons over its tokens, (n,) float32.

    Raises
    ------
    ConfregError
        A percentile over more tokens than one request to a server holds.
    """
    kind = plan.ablation.kind
    if kind == "constant":
        return np.full(len(plan.neurons), plan.ablation.value, dtype=np.float32)
    if kind == "percentile" and plan.remote:
        raise ConfregError(
            "A percentile over several requests would send every activation over the wire. "
            "Use ablation=mean or a number, or fewer --max-tokens so that one request holds them."
        )
    return np.concatenate([_layer_values(plan, model, at, advance) for at in plan.neurons.layers])


def deviations(
    plan: Plan, model: Model, advance: Callable[[int], None] = lambda tokens: None
) -> np.ndarray:
    """Standard deviations of the plan's neurons over the tokens of ``mean_over``, (n,) float32.

    Of the activations themselves, token by token.
    """
    return np.concatenate(
        [_layer_values(plan, model, at, advance, spread=True) for at in plan.neurons.layers]
    )


def occurrence_means(
    plan: Plan, model: Model, occurrence: int, advance: Callable[[int], None] = lambda tokens: None
) -> np.ndarray:
    """Means of the plan's neurons over the compared tokens of one occurrence, (n,) float32."""
    repeats = plan.table.repeats
    assert repeats is not None
    over = repeats.compared & (repeats.occurrence == occurrence)
    return np.concatenate(
        [_layer_values(plan, model, at, advance, over=over) for at in plan.neurons.layers]
    )


def _layer_values(
    plan: Plan,
    model: Model,
    layer: int,
    advance: Callable[[int], None],
    spread: bool = False,
    over: np.ndarray | None = None,
) -> np.ndarray:
    index = torch.from_numpy(plan.neurons.index[plan.neurons.layer == layer].copy())
    # A percentile needs every activation.
    summed = spread or over is not None or plan.ablation.kind == "mean"
    over = plan.mean_over if over is None else over
    parts, count = [], 0
    for start, stop in plan.token_units:
        block = token_block(plan.table, start, stop)
        chosen = block.positions[torch.from_numpy(over[start:stop])]
        parts.append(_activations(model, layer, block.inputs, chosen, index, summed))
        count += len(chosen)
        advance(stop - start)
    if summed:
        mean, square = torch.stack(parts).sum(0) / count
        found = (square - mean.square()).clamp_min(0).sqrt() if spread else mean
        return found.float().numpy()
    every = torch.ones(count, dtype=torch.bool)
    return effects.ablation_values(
        torch.cat(parts), plan.ablation.kind, plan.ablation.value, every
    ).numpy()


def _activations(
    model: Model,
    layer: int,
    inputs: torch.Tensor,
    chosen: torch.Tensor,
    index: torch.Tensor,
    summed: bool,
) -> torch.Tensor:
    """Activations (t, n) float32; or summed over tokens, with their squares: (2, n) float64."""
    # A function of its own: a request carries what its function knows, and no earlier results.
    down_proj = model.down_proj(layer)
    with model.trace(inputs) as tracer:
        activation = effects.pick(down_proj.input, chosen, index)
        part = activation.float()
        if summed:
            wide = activation.double()
            part = torch.stack([wide.sum(0), wide.square().sum(0)])
        part = nnsight.save(part.cpu())
        tracer.stop()
    return part


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value)
