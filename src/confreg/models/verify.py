"""Whether a row is right for a checkpoint at hand: parts of the model held against each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from confreg import effects as fx
from confreg.models.agreement import (
    COARSE,
    TOLERANCE,
    Compared,
    as_its_row_says,
    engines,
    of_engines,
    tokens_for,
    uncompared,
)
from confreg.models.architectures import resolve

if TYPE_CHECKING:
    from confreg.models.model import Model


def verify(model: Model) -> list[Compared]:
    """Hold the parts of a loaded model against each other.

    Parameters
    ----------
    model : Model
        In memory, or offloaded.

    Returns
    -------
    list of Compared
        Logits, routed experts where there are any, what `of_engines` gives, heads.

    Raises
    ------
    ConfregError
        A part cannot be reached, or not in the order in which the row says.
    """
    ids = tokens_for(model.description)
    with as_its_row_says(model.description):
        found = [logits(model, ids)]
        found += [experts(model, ids)] * bool(model.banks)
        return [*found, *of_engines(model, engines(model, ids)), heads(model, ids)]


def logits(model: Model, ids: torch.Tensor) -> Compared:
    """The readout's algebra against the plain model's logits."""
    norm, head = model.final_norm, model.unembedding
    with torch.no_grad():
        plain = model.nn._module(input_ids=ids.to(model.device), use_cache=False).logits
        with model.trace(ids):
            residual = norm.input
            readout = fx.read_readout(norm, head, residual, **model.readout)
            mine = nnsight.save(readout.finish(readout.raw(residual)))
    what = "logits by the row's readout and the plain model's"
    return _compared("logits", what, mine, plain, model)


def experts(model: Model, ids: torch.Tensor) -> Compared:
    """What neurons add by activation and output weight, against what their module returns.

    Both engines read activations and weights in the same way: their agreement says nothing of it.
    """
    layer = max((i for i, bank in enumerate(model.banks) if bank.experts), default=-1)
    if layer < 0:
        return uncompared("experts", "no layer has routed experts")
    routed = model.down_proj(layer)
    with torch.no_grad(), model.trace(ids):
        mine = nnsight.save(routed.adds(routed.input) + routed.biases())
        given = nnsight.save(routed.output.reshape(mine.shape))
    what = "what experts' neurons add and their module's output"
    return _compared("experts", what, mine, given, model)


def heads(model: Model, ids: torch.Tensor) -> Compared:
    """The last head's slice, made to attend to the first token, against its slice there.

    A head that attends to nothing else gives the same at every position: unless what it gives is
    gated, mixed with other heads' or laid out otherwise before the output projection.
    """
    attending = [layer for layer, attends in enumerate(model.attends) if attends]
    if not attending:
        return uncompared("heads", f"none: {model.description.row.no_heads or 'no layer attends'}")
    out = model.attention_out(attending[-1])
    assert out is not None
    path = model.description.row.attention_out.rpartition(".")[0]  # type: ignore[union-attr]
    attention = resolve(model._block(attending[-1])._module, path)
    with model.eager_attention():
        with _seen({"out": out._module}) as clean:
            _run(model, ids)
        try:
            with _seen({"out": out._module}) as seen, _first_only(attention, model.n_heads):
                _run(model, ids)
        except (RuntimeError, TypeError, ValueError) as error:
            said = (str(error).strip().splitlines() or ["?"])[0]
            return uncompared("heads", f"its attention takes no mask of each head ({said[:60]})")
    # The others are as they were.
    expected = clean["out"][0].float().unflatten(-1, (model.n_heads, -1)).clone()
    expected[..., -1, :] = expected[..., :1, -1, :]
    mine = seen["out"][0].float().unflatten(-1, (model.n_heads, -1))
    what = "a head that sees the first token only and its output there"
    return _compared("heads", what, mine, expected, model)


@contextmanager
def _first_only(attention: Any, n_heads: int) -> Iterator[None]:
    """Let the last head of a module see the first position only."""

    def mask(module: Any, args: Any, kwargs: Any) -> Any:
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        rows, length = hidden.shape[:2]
        given = kwargs.get("attention_mask")
        if given is None:
            given = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        if given.dtype == torch.bool:
            # Some say what is seen, some what is not: the first token does not see the second.
            sees = given if not given[..., 0, 1].any() else ~given
            sees = sees.expand(rows, n_heads, length, length).clone()
            sees[:, -1] = False
            sees[:, -1, :, 0] = True
            if sees.shape == given.shape or given[..., 0, 1].any():
                return args, {**kwargs, "attention_mask": ~sees}
            low = torch.finfo(hidden.dtype).min
            each = torch.zeros(sees.shape, dtype=hidden.dtype, device=hidden.device)
            return args, {**kwargs, "attention_mask": each.masked_fill(~sees, low)}
        each = given.expand(rows, n_heads, length, given.shape[-1]).clone()
        each[:, -1] = torch.finfo(given.dtype).min
        each[:, -1, :, 0] = 0
        return args, {**kwargs, "attention_mask": each}

    hook = attention.register_forward_pre_hook(mask, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _seen(modules: dict[str, Any]) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """What modules are given and what they give, by name."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[name] = (args[0].detach(), output.detach())

        return hook

    hooks = [m.register_forward_hook(watch(name)) for name, m in modules.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _run(model: Model, ids: torch.Tensor) -> None:
    with torch.no_grad():
        model.nn._module(input_ids=ids.to(model.device), use_cache=False)


def _compared(
    name: str, what: str, mine: torch.Tensor, other: torch.Tensor, model: Any
) -> Compared:
    mine, other = mine.double().cpu(), other.double().cpu()
    if mine.shape != other.shape:
        raise ValueError(f"{what} are of shapes {tuple(mine.shape)} and {tuple(other.shape)}")
    tolerance = TOLERANCE.get(model.dtype, COARSE)
    largest, difference = float(other.abs().max()), float((mine - other).abs().max())
    return Compared(name, what, difference, largest, tolerance)
