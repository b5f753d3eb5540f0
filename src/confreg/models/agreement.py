"""Engines held against each other on a model's last layer, at any place.

The forward pass with eight neurons changed knows nothing of a row but where the neurons are; the
closed forms follow from all of it. So their agreement on one sequence is evidence for the final
norm, its ε, the norm after the MLP, multipliers, scale, softcap and unembedding together. What is
changed is made large, about as long as the residual stream: nothing can hide in what is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from confreg import effects as fx

if TYPE_CHECKING:
    from confreg.models.model import Description

NEURONS, LENGTH = 8, 16
CHOSEN = (fx.loss.total, fx.loss.direct, fx.entropy.total)
ENGINES = {"exact": fx.Exact, "series": fx.Series}
TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
COARSE = 0.1
"""Of dtypes in which logits themselves are rounded to two or three digits."""


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
        The largest difference, and the largest number compared; NaN where nothing was.
    tolerance : float
        Of the difference, relative to ``largest`` where that is above 1.
    needed : bool
        Whether a measurement is wrong where they differ.
    """

    name: str
    what: str
    difference: float = float("nan")
    largest: float = float("nan")
    tolerance: float = 1e-4
    needed: bool = True

    @property
    def is_compared(self) -> bool:
        """Whether there was anything to compare."""
        return self.largest == self.largest

    @property
    def ok(self) -> bool:
        """Whether the two agree, or need not."""
        if not self.is_compared:
            return True
        return self.difference <= self.tolerance * max(1.0, self.largest)


def failure(model: Description, found: list[Compared]) -> str:
    """A sentence about the first part that differs, or ""."""
    wrong = [c for c in found if c.needed and not c.ok]
    if not wrong:
        return ""
    first = wrong[0]
    return (
        f"{model.name} ({model.architecture}) is not what its row says: {first.what} differ by "
        f"{first.difference:.2g}, of {first.largest:.2g} at most. Write a row that is right "
        "(docs/architectures.md says how)."
    )


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
        logits where the last token is another; ``"logit"``: the largest logit.
    """
    index, values = _chosen(model, ids)
    forward = _ablated(model, ids, index, values, fx.Forward())
    found = {"largest": float(forward.abs().max()), **_plainly(model, ids)}
    for name, engine in ENGINES.items():
        found[name] = float((_ablated(model, ids, index, values, engine()) - forward).abs().max())
    return found


def of_engines(model: Any, found: dict[str, float]) -> list[Compared]:
    """What `engines` found, as things compared."""
    tolerance = TOLERANCE.get(model.dtype, COARSE)
    what = "predictions and the same with another last token"
    causal = Compared("causal", what, found["ahead"], found["logit"], tolerance)
    what = "logits by the row's scale and softcap and the model's"
    plain = [Compared("scale", what, found["finished"], found["logit"], tolerance), causal]
    if model.after_mlp:
        alone = f"the forward engine alone fits: {model.after_mlp}"
        return [*plain, Compared("exact", alone)]
    return plain + [
        Compared(
            name, f"effects by forward and by {name}", found[name], found["largest"], tolerance
        )
        for name in ENGINES
    ]


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
        there = (~seen.isnan()).any(0).nonzero()[:, 0]
        index = there[torch.linspace(0, len(there) - 1, NEURONS).long().unique()]
        stream = site.final_norm.input if site.post_norm is None else site.post_norm.input
        weights = site.write_of(stream).weights(index.to(stream.device), stream)
        length = stream.float().norm(dim=-1).mean()
        values = seen[:, index].nanmean(0).to(weights.device) + length / weights.norm(dim=-1)
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
    return block["effects"].nan_to_num().double()
