"""Engines held against each other on a model's last layer, at any place.

The forward pass with eight neurons changed knows nothing of a row but where the neurons are; the
closed forms follow from all of it. So their agreement on one sequence is evidence for the final
norm, its ε, the norm after the MLP, multipliers, scale, softcap and unembedding together. What is
changed is made large, about as long as the residual stream: nothing can hide in what is small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from confreg import effects as fx
from confreg.errors import ConfregError, said
from confreg.models.architectures import DERIVED, resolve

if TYPE_CHECKING:
    from confreg.models.model import Description

NEURONS, LENGTH = 8, 16
CHOSEN = (fx.loss.total, fx.loss.direct, fx.entropy.total)
ENGINES = {"exact": fx.Exact, "series": fx.Series}
TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
COARSE = 0.1
"""Of dtypes in which logits themselves are rounded to two or three digits."""
LEAST = 0.25
"""Of the largest logit: smaller effects are rounded as if they were as large."""


@dataclass(frozen=True)
class Compared:
    """Two ways to the same numbers.

    Attributes
    ----------
    name : str
        The part: ``"logits"``, ``"neurons"``, ``"experts"``, ``"scale"``, ``"causal"``,
        ``"exact"``, ``"series"``, ``"heads"``.
    what : str
        What was compared, or why nothing was.
    difference, largest : float
        The largest difference, and the largest number compared; NaN or infinite where a number is.
    tolerance : float
        Of the difference, relative to ``largest``.
    least : float
        What ``largest`` counts as at least: of differences of larger numbers, whose rounding they
        have.
    is_compared : bool
        Whether there was anything to compare.
    """

    name: str
    what: str
    difference: float = float("nan")
    largest: float = float("nan")
    tolerance: float = 1e-4
    least: float = 0.0
    is_compared: bool = True

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return math.isfinite(self.difference) and math.isfinite(self.largest)

    @property
    def is_seen(self) -> bool:
        """Whether the numbers are large enough for a difference to be seen."""
        return self.largest > self.tolerance * self.least

    @property
    def ok(self) -> bool:
        """Whether the two agree, or nothing was compared."""
        agree = self.difference <= self.tolerance * max(self.largest, self.least)
        return not self.is_compared or (self.is_finite and self.is_seen and agree)


def uncompared(name: str, why: str) -> Compared:
    """A part of which nothing was compared."""
    return Compared(name, why, is_compared=False)


def failure(model: Description, found: list[Compared]) -> str:
    """A sentence about the first part that differs, or ""."""
    wrong = [c for c in found if not c.ok]
    if not wrong:
        return ""
    first, who = wrong[0], f"{model.name} ({model.architecture})"
    if not first.is_finite:
        narrow = f", or they overflow in {model.dtype}: try float32 (--dtype float32)"
        return (
            f"{who} cannot be verified: {first.what} are not finite. Its weights hold numbers that "
            f"are not{narrow if model.dtype not in TOLERANCE else ''}."
        )
    if not first.is_seen:
        return (
            f"{who} cannot be verified: {first.what} are {first.largest:.2g} at most, too small "
            "for a difference to be seen. Are its weights those of a trained model?"
        )
    own = model.row.origin not in ("", DERIVED)
    remedy = f"Mend {model.row.origin}" if own else "Write a row that is right"
    return (
        f"{who} is not what its row says: {first.what} differ by {first.difference:.2g}, of "
        f"{first.largest:.2g} at most. {remedy} (docs/architectures.md says how)."
    )


@contextmanager
def as_its_row_says(model: Description) -> Iterator[None]:
    """Turn whatever a wrong row leads to into a sentence.

    Raises
    ------
    ConfregError
        A part has another form, or is reached in another order, than the row says.
    """
    try:
        yield
    except (ConfregError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        how = "cannot be measured as its row says"
        if "OutOfOrder" in type(error).__name__:
            how = "does not run in the order in which its row names its parts"
        row = model.row.origin or "of the table"
        raise ConfregError(
            f"{model.name} ({model.architecture}) {how} ({row}): {said(error)}. "
            "docs/architectures.md says how a row is written."
        ) from error


def tokens_for(model: Description, length: int = LENGTH) -> torch.Tensor:
    """One sequence of random tokens behind BOS, (1, length)."""
    length = min(length, model.max_length or length)
    ids = torch.randint(
        0, model.vocab_real, (1, length), generator=torch.Generator().manual_seed(0)
    )
    if model.tokenizer.bos_token_id is not None:
        ids[:, 0] = int(model.tokenizer.bos_token_id)  # type: ignore[arg-type]
    return ids


def engines(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """Eight neurons of the last layer by a real intervention and by the closed forms.

    It is a few traces, which any place runs.

    Returns
    -------
    dict of str to float
        ``"exact"`` and ``"series"``: largest differences from ``forward``, in nats;
        ``"largest"``: the largest effect; ``"finished"``: the largest difference of logits, by the
        row's scale and softcap, from the model's own; ``"ahead"``: the largest change of earlier
        logits where the last token is another; ``"logit"``: the largest logit; ``"made"``: the
        largest difference of neurons from what the row says that makes them, 0 where it is
        `unread`; ``"neuron"``: the largest neuron.
    """
    index, values = _chosen(model, ids)
    forward = _ablated(model, ids, index, values, fx.Forward())
    found = {"largest": float(forward.abs().max()), **_plainly(model, ids), **made(model, ids)}
    for name, engine in ENGINES.items():
        found[name] = float((_ablated(model, ids, index, values, engine()) - forward).abs().max())
    return found


def of_engines(model: Any, found: dict[str, float]) -> list[Compared]:
    """What `engines` found, as things compared."""
    tolerance = TOLERANCE.get(model.dtype, COARSE)
    what = "neurons by the row's norm_before, up and gate and the model's"
    read = Compared("neurons", what, found["made"], found["neuron"], tolerance)
    if why := unread(model):
        read = uncompared("neurons", why)
    what = "predictions and the same with another last token"
    causal = Compared("causal", what, found["ahead"], found["logit"], tolerance)
    what = "logits by the row's scale and softcap and the model's"
    plain = [read, Compared("scale", what, found["finished"], found["logit"], tolerance), causal]
    if model.after_mlp:
        alone = f"the forward engine alone fits: {model.after_mlp}"
        return [*plain, uncompared("exact", alone)]
    least = LEAST * found["logit"]
    effects = ((name, f"effects by forward and by {name}", found[name]) for name in ENGINES)
    return plain + [Compared(*each, found["largest"], tolerance, least) for each in effects]


def unread(model: Any) -> str:
    """Why what neurons read cannot be compared, or ""."""
    if model.banks:
        return "in layers with routed experts: see there"
    if not model.row.up:
        return "its row does not say which matrices give them their inputs"
    if model.row.parallel and model.row.before_mlp(model.config) is None:
        return "the residual stream before its MLP cannot be told from what attention adds"
    return ""


def made(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """The last layer's neurons by what its row says of their inputs, against what they are.

    Of the activation functions that it may have, the one that fits best.
    """
    if unread(model):
        return {"made": 0.0, "neuron": 0.0}
    inputs, site, normed = model.inputs(-1), model.site(-1), True
    norm, function, times = inputs.norm, _activation_of(model), model.multiplier
    if norm is None:
        norm, normed = torch.nn.Identity(), False
    spec = {"centred": normed and inputs.centred, "eps": inputs.eps * normed, "normed": normed}
    with torch.no_grad(), model.trace(ids):
        if normed:
            stream = norm.input
        given = site.neurons.input
        if not normed:
            added = site.neurons.output if site.post_norm is None else site.post_norm.output
            stream = site.final_norm.input - added * times
        up = fx.read_readout(norm, inputs.up, stream, **spec).raw(stream)
        gate = up[..., : inputs.width]
        up = up[..., -inputs.width :]
        if inputs.gate is not None:
            gate = fx.read_readout(norm, inputs.gate, stream, **spec).raw(stream)
        gate = (gate * inputs.gate_factor).to(given.dtype)
        acted = gate if function is None else function(gate)
        found = nnsight.save([each.float().cpu() for each in (gate, acted, up, given)])
    gate, acted, up, given = found
    with torch.no_grad():
        mine = [acted, *(other(gate) for other in _usual(model.config))]
    if inputs.gate is not None or inputs.fused:
        mine = [each * up for each in mine]
    difference = min(float((each - given).abs().max()) for each in mine)
    return {"made": difference, "neuron": float(given.abs().max())}


def _activation_of(model: Any) -> Any:
    """Envoy of the activation function that stands beside the last down-projection, or None."""
    holder = model.row.down_projection.rpartition(".")[0]
    mlp = resolve(model._block(-1), holder) if holder else model._block(-1)
    for name, _ in mlp._module.named_children():
        if name.startswith("act") or name.endswith(("activation_fn", "_act")):
            return getattr(mlp, name)
    return None


def _usual(config: Any) -> list[Any]:
    """The activation function that a configuration names, and those that most models have."""
    from transformers.activations import ACT2FN

    names = ["silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2"]
    for attribute in ("hidden_act", "hidden_activation", "activation_function"):
        if getattr(config, attribute, None) in ACT2FN:
            names.insert(0, getattr(config, attribute))
    return [ACT2FN[name] for name in names]


def _plainly(model: Any, ids: torch.Tensor) -> dict[str, float]:
    """What the engines have in common: how logits are finished, and that none sees its target.

    Of two texts that differ in the last token, some of the logits but for the last.
    """
    other = ids.clone()
    other[:, -1] = torch.where(ids[:, -1] == ids[:, 1], ids[:, 2], ids[:, 1])
    seen, site, network = [], model.site(-1), model.nn
    for text in (ids, other):
        with torch.no_grad(), model.trace(text):
            readout = site.readout_of(site.final_norm.input)
            mine = readout.finish(site.unembedding.output.float())[:, :-1, :64].cpu()
            both = nnsight.save((mine, network.output.logits[:, :-1, :64].float().cpu()))
        seen.append(both)
    (mine, own), (_, elsewhere) = seen
    return {
        "finished": float((mine - own).abs().max()),
        "ahead": float((own - elsewhere).abs().max()),
        "logit": float(own.abs().max()),
    }


def _chosen(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Neurons from first to last, and values that change what they add to by its own length.

    That is the residual stream, or the post-norm's input. Of experts' neurons, some that are there
    at some token.
    """
    site = model.site(-1)
    with torch.no_grad(), model.trace(ids):
        activation = site.neurons.input
        seen = activation.float().reshape(-1, activation.shape[-1])
        there = (~seen.isnan()).any(0)
        there = (there | ~there.any()).nonzero()[:, 0]  # where none is finite, it is seen later
        index = there[torch.linspace(0, len(there) - 1, NEURONS).long().unique()]
        stream = site.final_norm.input if site.post_norm is None else site.post_norm.input
        weights = site.write_of(stream).weights(index.to(stream.device), stream)
        length, norms = stream.float().norm(dim=-1).mean(), weights.norm(dim=-1)
        change = torch.where(norms > 0, length / norms, 0).clamp(
            max=torch.finfo(activation.dtype).max / 4
        )
        values = seen[:, index].nanmean(0).to(weights.device) + change
        found = nnsight.save((index.cpu(), values.cpu()))
    return found


def _ablated(
    model: Any, ids: torch.Tensor, index: torch.Tensor, values: torch.Tensor, engine: Any
) -> torch.Tensor:
    targets = ids.roll(-1, 1)
    targets[:, -1] = -1
    tokens = fx.Tokens(ids, torch.arange(ids.numel()), targets.flatten(), targets.flatten() >= 0)
    edits = fx.Replace(index, values)
    unit = fx.Unit(tokens, edits, engine, CHOSEN, layer=model.n_layers - 1)
    site = model.site(-1)
    with torch.no_grad(), model.trace(unit.inputs):
        activation = site.neurons.input
        if unit.copies:
            site.neurons.input = unit.edits.apply(activation, unit.copies)
        block = site.measure(unit, activation)
        nnsight.save(block)
    return block["effects"][:, :-1].double()  # the last token has no next one
