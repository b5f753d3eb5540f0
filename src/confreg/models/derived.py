"""A row for an architecture that the table lacks, from what transformers names and a model does.

The model is built without weights, and two tokens go through it without numbers: which module's
output becomes which other's input is then seen, and nothing is guessed from names but where the
attention is. What the forward pass cannot show (scales, a softcap) is read where transformers'
configurations usually have it. A derived row is a supposition: it is verified on the checkpoint
before anything is measured (`confreg.models.verify`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from confreg.errors import ConfregError
from confreg.models.architectures import DERIVED, Architecture, resolve
from confreg.models.quiet import quiet

_NO_HEADS = (
    "its row is derived; heads are measured in families of the table, or with a row of your own"
)


@dataclass(frozen=True)
class Call:
    """One call of a module in a forward pass: where its tensors are stored says what they are."""

    path: str
    module: nn.Module
    given: torch.Tensor
    gave: torch.Tensor

    @property
    def is_projection(self) -> bool:
        """Whether it is a matrix: a Linear, a Conv1D."""
        own = dict(self.module.named_parameters(recurse=False))
        return "weight" in own and own["weight"].dim() == 2 and self.given.is_floating_point()

    @property
    def is_norm(self) -> bool:
        """Whether it is called a norm, and keeps the width."""
        same = self.given.shape[-1:] == self.gave.shape[-1:]
        return "norm" in type(self.module).__name__.lower() and same


def derive(config: Any, text: Any, name: str, network: nn.Module) -> Architecture:
    """A row for a model that the table lacks.

    Parameters
    ----------
    config, text : transformers.PretrainedConfig
        The model's, and that of the text model in it, or the same.
    name : str
        The model, for the message of an error.
    network : torch.nn.Module
        Without weights.

    Raises
    ------
    ConfregError
        The part that cannot be found, or that is found twice.
    """

    def refuse(reason: str) -> ConfregError:
        return ConfregError(
            f"{name} has the architecture {config.model_type!r}, which is not in confreg's table, "
            f"and no row could be derived: {reason}. Write one (docs/architectures.md says how), "
            "and try it with `confreg verify`."
        )

    decoder, head = _parts(network)
    if decoder is None or head is None:
        raise refuse("transformers does not say what its decoder and its unembedding are")
    paths = {id(module): path for path, module in network.named_modules()}
    layers = [
        child
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == text.num_hidden_layers
    ]
    if len(layers) != 1:
        raise refuse(f"its decoder holds {len(layers)} lists of {text.num_hidden_layers} layers")
    try:
        calls = _watch(network)
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refuse(f"it cannot be run without weights ({said})") from error
    at, last = paths[id(layers[0])], paths[id(layers[0][-1])]
    norm = _one(
        [c for c in calls if c.is_norm and _feeds(c, head, calls)],
        "norms before the unembedding", refuse,
    )  # fmt: skip
    if sum(c.module is norm.module for c in calls) > 1:
        raise refuse("its final norm is called at other places too")
    inside = [c for c in calls if c.path.startswith(last + ".")]
    down = _down_projection(network, inside, config, text, refuse)
    post = [c for c in inside if c.is_norm and _same(c.given, down.gave)]
    up, gate, before = _inputs(inside, down)
    inner = len(last) + 1
    centred, eps = measured(norm.module, text.hidden_size)
    return Architecture(
        config.model_type,
        config.model_type,
        layers=at,
        down_projection=down.path.removeprefix(last + "."),
        final_norm=norm.path,
        unembedding=paths[id(head)],
        centred=centred,
        eps=eps,
        width=int(down.given.shape[-1]),
        up=up[inner:],
        gate=gate[inner:],
        norm_before=before[inner:] or None,
        post_norm=post[0].path.removeprefix(last + ".") if post else None,
        scale=_scale(text),
        multiplier=float(getattr(text, "residual_multiplier", None) or 1),
        softcap="final_logit_softcapping" if hasattr(text, "final_logit_softcapping") else None,
        no_heads=_NO_HEADS,
        origin=DERIVED,
    )


def _parts(network: Any) -> tuple[nn.Module | None, nn.Module | None]:
    decoder = network.get_decoder() if hasattr(network, "get_decoder") else None
    return decoder, network.get_output_embeddings()


def _watch(network: nn.Module) -> list[Call]:
    """Every call of a module that is given a tensor and gives one, in order of their ends.

    A mask of four dimensions is taken as it is by most models; making one needs numbers. Others
    know none such, and make theirs of nothing.
    """
    given: dict[str, Any] = {
        "input_ids": torch.zeros(1, 2, dtype=torch.int64, device="meta"),
        "use_cache": False,
    }
    mask = torch.zeros(1, 1, 2, 2, device="meta")
    errors = []
    for more in ({"attention_mask": mask}, {}):
        calls: list[Call] = []
        try:
            with _hooked(network, calls), torch.no_grad(), quiet():
                network.eval()(**given, **more)
        except Exception as error:
            errors.append(error)
        else:
            return calls
    raise errors[0]


@contextmanager
def _hooked(network: nn.Module, calls: list[Call]) -> Iterator[None]:
    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = next((v for v in (*args, *kwargs.values()) if torch.is_tensor(v)), None)
            gave = output[0] if isinstance(output, tuple) and output else output
            if given is not None and torch.is_tensor(gave):
                calls.append(Call(path, module, given, gave))

        return hook

    hooks = [
        module.register_forward_hook(watch(path), with_kwargs=True)
        for path, module in network.named_modules()
        if path
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are stored in the same place: views of one another."""
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _feeds(call: Call, head: nn.Module, calls: list[Call]) -> bool:
    return any(c.module is head and _same(c.given, call.gave) for c in calls)


def _one(found: list[Call], what: str, refuse: Any) -> Call:
    if len(found) != 1:
        names = f" ({', '.join(c.path for c in found)})" if found else ""
        raise refuse(f"it has {len(found)} {what}{names}")
    return found[0]


def _down_projection(
    network: nn.Module, inside: list[Call], config: Any, text: Any, refuse: Any
) -> Call:
    """The matrix outside the attention that writes to the residual stream."""
    found = [
        c
        for c in inside
        if c.is_projection
        and c.gave.shape[-1] == text.hidden_size
        and not any("att" in part for part in c.path.lower().split("."))
    ]
    plan = [
        f"*{path}"
        for part in (config, text)
        for path, kind in (getattr(part, "base_model_tp_plan", None) or {}).items()
        if kind.startswith("rowwise")
    ]
    planned = [c for c in found if any(fnmatch(c.path, pattern) for pattern in plan)]
    down = _one(planned or found, "matrices after which a layer's MLP could end", refuse)
    holder = resolve(network, down.path.rpartition(".")[0])
    shapes = [p.dim() for p in holder.parameters()]
    if list(holder.parameters(recurse=False)) or any(dim > 2 for dim in shapes):
        raise refuse(f"what holds {down.path} is no MLP")
    return down


def _inputs(inside: list[Call], down: Call) -> tuple[str, str, str]:
    """Paths of the matrices that make the neurons, and of the norm before them, "" where none is.

    Which of two is the gate is told from its name; where it cannot be, none is known, nor where a
    norm follows them.
    """
    if any(c.is_norm and _same(c.gave, down.given) for c in inside):
        return "", "", ""
    holder, width = down.path.rpartition(".")[0], down.given.shape[-1]
    found = [
        c
        for c in inside
        if c.is_projection and c is not down and c.path.rpartition(".")[0] == holder
        and c.gave.shape[-1] in (width, 2 * width) and c.given.shape[-1] == down.gave.shape[-1]
    ]  # fmt: skip
    names = [c.path.rpartition(".")[2] for c in found]
    gates = [c for c, name in zip(found, names) if name.startswith("gate") or name == "w1"]
    if len(found) == 1:
        up, gate = found[0].path, found[0].path if found[0].gave.shape[-1] > width else ""
    elif len(found) == 2 and len(gates) == 1:
        gate = gates[0].path
        up = next(c.path for c in found if c is not gates[0])
    else:
        return "", "", ""
    norms = [c.path for c in inside if c.is_norm and _same(c.gave, found[0].given)]
    return up, gate, norms[-1] if norms else ""


def _scale(text: Any) -> float:
    """What logits are multiplied by, by the names that configurations have for it."""
    if getattr(text, "logits_scaling", None):
        return 1 / float(text.logits_scaling)
    scale = getattr(text, "logit_scale", None)
    return float(scale) if isinstance(scale, int | float) else 1.0


def measured(norm: nn.Module, width: int) -> tuple[bool, float]:
    """Whether a norm centres, and its ε, by calling a copy of it.

    A vector of ±a with mean 0 comes back γ a/√(a² + ε) long.
    """
    norm = copy.deepcopy(norm).to_empty(device="cpu").float()
    for tensor in (*norm.parameters(), *norm.buffers()):
        tensor.data.fill_(1.0)
    sign = torch.ones(1, width)
    sign[:, 1::2] = -1
    with torch.no_grad():
        shifted = norm(sign + 2) - norm(sign)
        centred = bool(shifted.abs().max() < 1e-3)
        bias = (norm(sign) + norm(-sign)) / 2
        whole = float((norm(1e6 * sign) - bias)[0, 0])
        for power in range(12):
            a = 10.0**-power
            kept = float((norm(a * sign) - bias)[0, 0]) / whole
            if kept < 0.9:
                return centred, float(f"{a * a * (1 / kept**2 - 1):.3g}")
    return centred, 0.0
