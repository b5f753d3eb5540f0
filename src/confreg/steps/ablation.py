"""The step that most recipes are about: edits, made one by one, and what they do to predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg import effects as fx
from confreg.axes import Axis, Later, Spans, Variable
from confreg.derive import grouped
from confreg.effects.tally import ROUTED
from confreg.errors import ConfregError
from confreg.steps.activity import kept
from confreg.steps.effects import change_means, effect_axis, effect_means, errors, routed_means
from confreg.steps.engines import choose
from confreg.steps.upload import entries_that_fit
from confreg.steps.values import VALUE, Value
from confreg.sweep.budget import Budget
from confreg.sweep.layout import cut, resolve
from confreg.sweep.step import Item, Step
from confreg.tokens import answers

if TYPE_CHECKING:
    from confreg.study import Study
    from confreg.subjects.neurons import NeuronAxis
    from confreg.tokens.axis import Text
    from confreg.tokens.counts import Counts

SAMPLE, SHARE = 4096, 1 / 16
"""Pairs of a run that are recomputed exactly, in float64, to measure the error: so many, but of a
small run no more than this share of all."""
CLOSED_FORMS = ("series", "exact")


def ablation(
    study: Study,
    trace: Callable[..., Mapping[str, Any]],
    subjects: Axis | Later,
    tokens: Text,
    *,
    effects: Sequence[fx.Effect],
    to: Value | None = None,
    edits: Callable[[int, int, Mapping[str, np.ndarray]], Any] | None = None,
    layer: int = -1,
    counts: Counts | None = None,
    watched: NeuronAxis | None = None,
    activations: bool | None = None,
    changes: bool = False,
) -> list[Item]:
    """Make every edit of an axis at every token, and measure what it does to the prediction.

    Gives ``effects (subject, token, effect)`` (unless ``--reduce token``), ``effect_mean`` and
    ``effect_abs_mean (subject, effect)`` over kept tokens, and of the unedited model ``loss``,
    ``entropy``, ``norm_scale``, ``rank``, ``top1`` and further measures of the effects ``(token)``.

    Parameters
    ----------
    study : Study
    trace : callable
        ``trace(model, unit)``: one trace that makes the edits and returns ``site.measure(...)``.
    subjects : Axis
        Its entries are edits (see `confreg.effects`); those of neurons and sets wait for values.
    tokens : Text
    effects : sequence of Effect
    to : Value, optional
        What replaces activations, where the edits are of neurons or sets of them.
    edits : callable, optional
        ``edits(start, stop, stored)``: a span of the axis as edits, where they depend on what is
        stored. By default the axis's entries, settled by ``to``.
    layer : int
        Where the edits are made, where the axis does not say.
    counts : Counts, optional
        Token counts, for measures and pathways about token frequencies.
    watched : NeuronAxis, optional
        Neurons whose activations are kept; by default those that are ablated.
    activations : bool, optional
        Keep activations; by default where ``--activations`` is given.
    changes : bool
        Keep also how the edits change the watched neurons' activations.

    Raises
    ------
    ConfregError
        An engine that cannot measure these effects, or a measure that returns no number for a
        prediction.
    """
    work = _Ablation(study, subjects, tokens, tuple(effects), to, edits, layer, counts)
    work.watch(watched, study.options.activations if activations is None else activations, changes)
    step = Step(
        trace,
        over=(subjects, tokens),
        gives=tuple(work.gives()),
        along=tuple(work.along()),
        unit=work.unit,
        most=work.most,
        cost=work.cost,
        uncut=(tokens.name,) if work.shared else (),
        name="effects",
        check=work.check,
        effort=work.keeps() if work.routed else "",
        attributes=work.attributes(),
    )
    before = [] if to is None or work.shared else to.items
    return [*before, step, *work.derived()]


def _try(effects: Sequence[fx.Effect], vocabulary: int) -> None:
    """Call a user's own measures on logits of zero, so that what is wrong is said in the plan."""
    import torch

    logits, targets = torch.zeros(3, vocabulary, dtype=torch.float64), torch.tensor([0, 1, -1])
    given = {"log_frequency": logits[0], "norm_scale": torch.ones(3, dtype=torch.float64)}
    for measure in {effect.quantity: effect.measure for effect in effects}.values():
        if measure.shared:
            continue
        try:
            with torch.no_grad():
                if measure.comparing:
                    measure.compared(fx.Comparison(logits, logits))
                else:
                    found = measure.of(logits, targets, given)
                    measure.change(found, found)
        except ValueError as error:
            if not str(error).startswith(f"measure {measure.name!r} returned"):
                raise
            raise ConfregError(f"{str(error)[0].upper()}{str(error)[1:]}.") from error


class _Unknown(dict[str, np.ndarray]):
    """Stands for what is stored, before anything is: arrays of one zero."""

    def __missing__(self, name: str) -> np.ndarray:
        return np.zeros(1, dtype=np.float32)


class _Ablation:
    """What `ablation` decides before anything is loaded, and makes of spans afterwards."""

    def __init__(
        self,
        study: Study,
        subjects: Axis | Later,
        tokens: Text,
        effects: tuple[fx.Effect, ...],
        to: Value | None,
        edits: Callable[[int, int, Mapping[str, np.ndarray]], Any] | None,
        layer: int,
        counts: Counts | None,
    ) -> None:
        self.study, self.subjects, self.tokens, self.effects = study, subjects, tokens, effects
        self.assumed = resolve(subjects, None)
        self.to, self.edits, self.counts = to, edits, counts
        self.model = study.model.about
        _try(effects, self.model.vocab_size)
        self.summed = self._summed()
        self.layer = self.model.layer(layer)
        self.layers = getattr(self.assumed, "layers", [self.layer])
        self.cube = study.options.reduce == "none"
        self.engines = {at: self._engine(at) for at in self.layers}
        self.forward = "forward" in self.engines.values()
        self.packed = None if counts is None else counts.packed(self.model.owned)
        self.shared = self._is_shared()
        pairs = len(self.assumed) * int(tokens.keep.sum())
        self.sample = max(min(SAMPLE, int(pairs * SHARE)), 1)
        self.routed = self.model.n_experts > 1 and hasattr(self._specimen(), "index")

    def _summed(self) -> list[str]:
        """What the measures run along.

        Raises
        ------
        ConfregError
            No document has it, or it cannot be read with the others.
        """
        table, found = self.tokens.table, {}
        for effect in self.effects:
            if effect.measure.along:
                found[effect.measure.along] = effect.name
        for along, name in found.items():
            if not answers.has(table, along):
                raise ConfregError(
                    f"{name} is measured on {answers.NEEDS[along]}, and this text ({table.corpus}) "
                    "has none: see docs/prompts.md."
                )
        if "contrast_whole" in found and self.tokens.together is not None:
            raise ConfregError(
                "Beyond a length this model scales its positions by how long a sequence is, so "
                "contrasts that are longer or shorter than targets cannot be read beside them; "
                "measure contrast_total, of first tokens."
            )
        return list(found)

    def _engine(self, layer: int) -> str:
        last = layer == self.model.n_layers - 1
        wanted, after = self.study.options.engine, self.model.after_mlp
        return choose(wanted, self._specimen(), self.effects, last, after)

    def _specimen(self) -> Any:
        """One of the edits, to be asked what it can; what it depends on is not known yet."""
        if self.edits is None:
            return self.assumed.entries(0, 1)
        return self.edits(0, 1, _Unknown())

    def _is_shared(self) -> bool:
        """Whether values over tokens are found in the one pass that sees all of them."""
        if self.to is None or not self.to.ablation.over_tokens or self.to.over is None:
            return False
        if getattr(self._specimen(), "rank", 1) != 1:
            return False
        most = self.most(self.study.budget)["token"]
        return len(cut(self.tokens, most)) == 1

    def watch(self, watched: NeuronAxis | None, activations: bool, changes: bool) -> None:
        """Decide whose activations are kept."""
        own = hasattr(self.assumed, "neurons") and self.assumed.name == "neuron"
        if activations and watched is None and not own:
            raise ConfregError(
                f"What is ablated here is no neuron ({self.assumed.name}): --activations are kept "
                "for single neurons."
            )
        self.watched: Axis | None = self.assumed if watched is None and own else watched
        self.activations, self.changes = activations, changes

    def gives(self) -> list[Variable]:
        """What the trace returns."""
        subject, added = self.subjects.name, ("token",)
        hidden: Any = {"dtype": "float64", "kept": False}
        both = (subject, "token")
        found = []
        if self.cube:
            text = "change of the prediction against the unablated model"
            text += "; 0 where a token is not routed to the neuron" * self.routed
            dims = (subject, "token", "effect")
            found.append(Variable("effects", dims, text, "see effect_units"))
        found += [
            Variable(m.name, ("token",), m.long_name, _units(m), m.dtype)
            for m in fx.unedited(self.effects, self.counts is not None)
        ]
        for name, text in (("effect_sum", "sum"), ("effect_abs_sum", "sum of absolute values")):
            dims = (subject, "effect")
            text = f"{text} of the effect over kept tokens"
            found.append(Variable(name, dims, text, added_over=added, **hidden))
        if self.tokens.groups is not None:
            for name, dtype in (
                ("effect_sum_by", "float64"),
                ("effect_abs_sum_by", "float64"),
                ("effect_undefined_by", "int64"),
            ):
                found.append(
                    Variable(
                        name, (subject, "effect", "group"), "sum by group", dtype=dtype,
                        added_over=added, kept=False,
                    )
                )  # fmt: skip
        text = "kept tokens at which the effect is no finite number, and left out"
        counted: Any = {"dtype": "int64", "kept": False, "added_over": added}
        found.append(Variable("effect_undefined", (subject, "effect"), text, **counted))
        for name in ("pairs", "recomputed", "sampled"):
            found.append(Variable(name, (), name, added_over=both, **hidden))
        of_effects = ("effect",)
        found.append(Variable("error_sum", of_effects, "error", added_over=both, **hidden))
        found.append(Variable("error_largest", of_effects, "error", largest_over=both, **hidden))
        if self.routed:
            text = "kept tokens that are routed to the neuron's expert"
            counted = {"dtype": "int64", "added_over": added}
            found.append(Variable("routed_tokens", (subject,), text, **counted))
            for name, dtype in zip(ROUTED, ("float64", "float64", "int64")):
                text = "over kept tokens that are routed there and have the effect"
                own = hidden | {"dtype": dtype, "added_over": added}
                found.append(Variable(name, (subject, "effect"), text, **own))
        if self.shared:
            found.append(VALUE)
        return found + self._of_watched(subject)

    def _of_watched(self, subject: str) -> list[Variable]:
        found = []
        if self.watched is None:
            return found
        neuron = self.watched.name
        if self.activations:
            found.append(kept(self.study, neuron))
        if self.changes and self.activations:
            text = "change of the neuron's activation against the unablated model"
            found.append(Variable("activation_change", (subject, "token", neuron), text))
        for name in ("activation_change_sum", "activation_change_abs_sum") if self.changes else ():
            text = "sum over kept tokens"
            dims = (subject, neuron)
            hidden: Any = {"dtype": "float64", "kept": False}
            found.append(Variable(name, dims, text, added_over=("token",), **hidden))
        if self.changes and self.model.n_experts > 1:
            text = "kept tokens at which the neuron is there with the edit and without it"
            counted: Any = {"dtype": "int64", "added_over": ("token",)}
            found.append(Variable("activation_change_count", (subject, neuron), text, **counted))
        return found

    def check(self, block: Mapping[str, np.ndarray], spans: Spans) -> None:
        """Refuse a model whose own prediction is no number where effects are reduced.

        Raises
        ------
        ConfregError
            It names the first such token.
        """
        if "loss" not in block:
            return
        start = spans.bounds[self.tokens.name][0]
        kept = self.tokens.keep[spans[self.tokens.name]]
        # What no token follows has no loss, and may be kept for other effects.
        kept = kept & (self.tokens.table.next_token_id[spans[self.tokens.name]] >= 0)
        wrong = np.flatnonzero(kept & ~np.isfinite(block["loss"]))
        if len(wrong):
            table, at = self.tokens.table, start + int(wrong[0])
            raise ConfregError(
                f"The loss of {self.model.name} is not finite at {len(wrong)} of {kept.sum()} kept "
                f"tokens, first at position {table.position[at]} of sequence {table.sequence[at]}: "
                f"in {self.model.dtype} a number overflows. Run it in another dtype: --dtype "
                f"{'float32' if self.model.dtype != 'float32' else 'bfloat16'}, or look at the "
                "checkpoint."
            )

    def keeps(self) -> str:
        """What is kept of experts' neurons, in words: most of a cube of them is empty."""
        return "keeps the cube" if self.cube else "keeps sums over tokens in place of the cube"

    def along(self) -> list[Axis]:
        """Axes of what it gives that units do not cut."""
        found = [effect_axis(self.effects)]
        if self.tokens.groups is not None:
            found.append(self.tokens.groups.axis)
        if self.watched is not None and self.watched is not self.assumed:
            found.append(self.watched)
        return found

    def attributes(self) -> dict[str, str | int | float]:
        """What a dataset says of it."""
        said: dict[str, str | int | float] = {
            "engine": ",".join(sorted(set(self.engines.values()))),
            "tolerance": self.study.options.tolerance,
            "reduce": self.study.options.reduce,
        }
        if self.to is not None:
            said |= self.to.attributes
        if self.counts is not None:
            said |= self.counts.attributes
        return said

    def most(self, budget: Budget) -> dict[str, int]:
        """Entries and tokens of a unit, so that both closed forms and copies fit the memory."""
        length, vocabulary = self.tokens.length, self.model.vocab_size
        rows = 1 + (
            "contrast_whole" in self.summed
        )  # of a prompt: one with its target, one without
        if self.forward:
            entries = max(budget.memory // (rows * length * vocabulary * 16) - 1, 1)
            entries = min(entries, budget.copies)
        else:
            entries = max(budget.memory // 4 // (length * len(self.effects) * 8), 1)
        if budget.upload is not None:
            entries = min(entries, self._uploaded(budget.upload))
        largest = max(stop - start for start, stop in cut(self.assumed, entries))
        per_token = rows * 24 * vocabulary + 8 * largest * (len(self.effects) + 1)
        fit = max(int(budget.memory * 0.6) // per_token // length, 1) * length
        if self.forward and self.tokens.singly:
            copies = min(entries, largest)
            fit = max(
                min(entries // copies, budget.memory // (16 * length * vocabulary * (1 + copies))),
                1,
            )
        elif self.forward:
            fit = length
        elif not budget.dear:
            # What a unit costs are the tokens at which effects are wanted.
            cheap = int(budget.tokens / self._wanted_share())
            fit = min(fit, max(cheap // length, 1) * length)
        return {self.subjects.name: entries, self.tokens.name: fit}

    def _wanted_share(self) -> float:
        """The share of tokens at which effects are wanted."""
        wanted = self.tokens.table.wanted
        if wanted is None:
            return 1.0 if self.cube else float(self.tokens.keep.mean())
        return max(float(wanted.mean()), 1 / len(wanted))

    def _uploaded(self, upload: int) -> int:
        """How many edits a request may carry."""
        import zstandard

        left = upload
        if self.packed is not None:
            counts = len(zstandard.compress(self.packed.tobytes()))
            # Counts of a vocabulary so large are more than that by themselves.
            left = upload - counts if counts < upload else upload // 2
        return entries_that_fit(self.assumed, self._pretended(), left)

    def _pretended(self) -> Callable[[int, int], Any]:
        """Spans of the axis as edits, with random numbers for what is not stored yet."""
        settle = getattr(self.assumed, "settle", None)
        if self.edits is not None:
            edits = self.edits
            return lambda start, stop: edits(start, stop, _Unknown())
        if settle is None or self.to is None:
            return self.assumed.entries
        neurons, draw = getattr(self.assumed, "neurons", ()), np.random.default_rng(0)
        names = [variable.name for item in self.to.items for variable in item.gives]
        numbers = {
            name: draw.normal(size=len(neurons)).astype(np.float32) for name in [VALUE.name, *names]
        }
        return lambda start, stop: settle(start, stop, numbers)

    def cost(self, spans: Spans) -> float:
        """Passes of a unit's text: one, and one for each copy."""
        start, stop = spans.bounds[self.subjects.name]
        if self.engines[self._layer(start)] != "forward":
            return 1
        text = self.tokens.entries(*spans.bounds["token"]) if self.tokens.singly else None
        return (1 + stop - start) * (1 if text is None else text.inputs.numel() / len(text))

    def _layer(self, start: int) -> int:
        together = getattr(self.assumed, "layer", None)
        return self.layers[0] if together is None else int(together[start])

    def unit(self, spans: Spans, stored: Mapping[str, np.ndarray]) -> fx.Unit:
        """What one unit carries."""
        import torch

        axis = resolve(self.subjects, stored)
        start, stop = spans.bounds[axis.name]
        text = self.tokens.entries(*spans.bounds["token"])
        if self.summed:
            at = spans.bounds["token"][0]
            text = answers.answered(text, self.tokens.table, at, self.summed)
        if self.tokens.groups is not None:
            codes = torch.full((len(text),), -1)
            codes[: text.own] = torch.from_numpy(self.tokens.groups.codes[spans["token"]])
            text.in_groups(codes, len(self.tokens.groups.axis))
        layer, watched = self._layer(start), None
        if self.watched is axis or self.watched is self.assumed:
            if self.activations:
                watched = _indices(axis, start, stop)
        elif self.watched is not None and (self.changes or (self.activations and start == 0)):
            watched = _indices(self.watched, 0, len(self.watched))
        changes = ("all" if self.activations else "sums") if self.changes else None
        return fx.Unit(
            text,
            self._edits(axis, start, stop, text, spans, stored),
            self._made(self.engines[layer]),
            self.effects,
            layer=layer,
            memory=self.study.budget.memory,
            seed=self.study.options.seed + spans.number,
            sample=-(-int(self.sample * spans.share) // spans.count),
            cube=self.cube,
            watched=watched,
            changes=changes,
            counts=None if self.packed is None else torch.from_numpy(self.packed),
        )

    def _edits(
        self,
        axis: Axis,
        start: int,
        stop: int,
        text: fx.Tokens,
        spans: Spans,
        stored: Mapping[str, np.ndarray],
    ) -> Any:
        import torch

        if self.shared and self.to is not None and self.to.over is not None:
            index = _indices(axis, start, stop)
            over = torch.zeros(len(text), dtype=torch.bool)
            over[: text.own] = torch.from_numpy(self.to.over[spans["token"]])
            kind = self.to.ablation
            return fx.ReplaceByOwn(index, kind.kind, kind.value, text.positions, over)
        if self.edits is not None:
            return self.edits(start, stop, stored)
        settle = getattr(axis, "settle", None)
        if settle is None or self.to is None:
            return axis.entries(start, stop)
        return settle(start, stop, stored)

    def _made(self, engine: str) -> Any:
        if engine == "series":
            return fx.Series(self.study.options.tolerance)
        return fx.Exact() if engine == "exact" else fx.Forward()

    def derived(self) -> list[Item]:
        """Means over kept tokens, and how far the closed forms were off."""
        subject, kept = self.subjects.name, int(self.tokens.keep.sum())
        unanswered = int((self.tokens.keep & (self.tokens.table.next_token_id < 0)).sum())
        found: list[Item] = [effect_means(subject, self.effects, kept, unanswered)]
        if self.tokens.groups is not None:
            found.append(grouped.means(subject, self.effects, self.tokens.groups))
        if self.routed:
            found.append(routed_means(subject, self.effects))
        if self.changes and self.watched is not None:
            routed = self.model.n_experts > 1
            found.append(change_means(subject, self.watched.name, kept, routed))
        if any(engine in CLOSED_FORMS for engine in self.engines.values()):
            found.append(errors(self.effects, self.study.options.tolerance))
        return found


def _units(measure: fx.Measure) -> str:
    """Units of a measure of the unedited model: none where it is a label, such as a token's index.

    Labels are whole numbers, of which an edit's effect is no difference.
    """
    is_label = np.dtype(measure.dtype).kind == "i" and measure.difference is not None
    return "" if is_label else measure.units


def _indices(axis: Any, start: int, stop: int) -> Any:
    """Indices in their layer of a span of neurons, as a tensor."""
    import torch

    return torch.from_numpy(axis.neurons.index[start:stop].copy())
