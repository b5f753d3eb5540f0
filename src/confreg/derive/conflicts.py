"""What the model answers where a prompt says otherwise than it knows, before and after an edit.

A prompt's answer is the likeliest token at its last position: *contextual* if it is the first of
an accepted target, which the context says, *parametric* if it is the first of the contrast, which
is what is known without it, and else *neither*. With n(s → k) prompts that go from s to k,

    conversion ratio of k    Σ_{s≠k} n(s → k) / Σ_{s≠k} n(s)
    transition score         Σ_{s≠k} n(s → k) / Σ n(s)

Tighidet et al. (2025), arXiv 2509.10663. The formula of each class is its own: no class's ratio
counts prompts that were in it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg import effects as fx
from confreg.axes import Axis, Label, Later, Variable
from confreg.derive.discovery import q_values, q_variable
from confreg.errors import ConfregError
from confreg.subjects.sets import controls_of
from confreg.sweep.step import Derivation

if TYPE_CHECKING:
    import xarray as xr

    from confreg.effects import Effect
    from confreg.tokens.axis import Text

CLASSES = ("parametric", "contextual", "neither")
NEITHER = len(CLASSES) - 1
UNKNOWN = -1
"""An answer after an edit of which it is not known what it does."""


class Answers:
    """Where prompts end, and which tokens begin which answer.

    Attributes
    ----------
    token : ndarray (P,)
        The last token of each prompt, among the tokens of the text.
    document : ndarray (P,)
        Its number.
    parametric, contextual : list of set of int
        First tokens of the answers.
    """

    def __init__(self, tokens: Text) -> None:
        """Read the answers of the kept prompts.

        Raises
        ------
        ConfregError
            There are none, or one that lacks a target or a contrast, or whose answers begin alike.
        """
        table = tokens.table
        kept = [(n, each) for n, each in enumerate(table.answers) if tokens.keep[each.token]]
        for number, each in kept:
            if not each.targets or not each.contrast:
                raise ConfregError(
                    f"Document {number} of {table.corpus} lacks a "
                    f"{'contrast' if each.targets else 'target'}: prompts about conflicts have as "
                    "target what the context says and as contrast what is known without it."
                )
            if each.contrast[0] in {ids[0] for ids in each.targets}:
                raise ConfregError(
                    f"Document {number} of {table.corpus}: its target and its contrast begin with "
                    "the same token, by which they cannot be told apart."
                )
        if not kept:
            raise ConfregError(
                "This recipe is about prompts with a target (what the context says) and a contrast "
                f"(what is known without it), and {table.corpus} holds none: give --text "
                "confreg:conflicts, or documents of your own."
            )
        self.token = np.array([each.token for _, each in kept])
        self.document = np.array([number for number, _ in kept])
        self.contextual = [{ids[0] for ids in each.targets} for _, each in kept]
        self.parametric = [{each.contrast[0]} for _, each in kept]

    def classes(self, predicted: np.ndarray) -> np.ndarray:
        """Which of `CLASSES` predicted tokens (..., P) are, int8."""
        found = np.full(predicted.shape, NEITHER, dtype=np.int8)
        for column, answers in enumerate(zip(self.parametric, self.contextual)):
            for code, ids in enumerate(answers):
                found[..., column][np.isin(predicted[..., column], list(ids))] = code
        return found


def transitions(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How many prompts go from one class to another, (n, before, after) int64.

    Parameters
    ----------
    before : ndarray (P,) of class numbers
    after : ndarray (n, P)
        `UNKNOWN` is not counted.
    """
    k = len(CLASSES)
    pairs = before[None].astype(np.int64) * k + after
    rows = (row[known] for row, known in zip(pairs, after >= 0))
    return np.stack([np.bincount(row, minlength=k * k).reshape(k, k) for row in rows])


def conversion(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Conversion ratios (n, class), NaN where all were in the class before, and scores (n,)."""
    total = counts.sum((1, 2))
    stay = np.diagonal(counts, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):
        ratio = (counts.sum(1) - stay) / (total[:, None] - counts.sum(2))
    return ratio, (total - stay.sum(1)) / total


def conflict(
    subjects: Axis | Later, tokens: Text, effects: Sequence[Effect], predicted: Effect
) -> list[Derivation]:
    """What each edit of an axis does to answers, against random controls.

    Gives ``answer_before (prompt)``, ``answer_after (set, prompt)``, class numbers; ``transitions
    (set, before, after)``, ``conversion_ratio (set, after)``, ``transition_score (set)`` and
    ``entropy_change (set, before, after)``; and where each stands among random sets:
    ``conversion_p_random``, ``transition_p_random``, with q beside them, ``conversion_quantile``
    and ``transition_quantile``, the share of random sets that are below it, ties half.

    Parameters
    ----------
    predicted : Effect
        The likeliest token after the edit.

    Raises
    ------
    ConfregError
        As `Answers`.
    """
    answers, names = Answers(tokens), [effect.name for effect in effects]
    subject, at = subjects.name, answers.token
    column, entropy = names.index(predicted.name), names.index(fx.entropy.total.name)
    axes = (
        _prompts(tokens, answers),
        Axis.of("before", np.array(CLASSES, dtype=object), "answer before the ablation"),
        Axis.of("after", np.array(CLASSES, dtype=object), "answer after the ablation"),
    )

    def answers_and_transitions(ds: xr.Dataset) -> dict[str, Any]:
        before = answers.classes(ds["top1"].values[at])
        cube = ds["effects"].transpose(subject, tokens.name, "effect").values[:, at]
        unknown = np.isnan(cube[..., column])
        after = answers.classes(np.nan_to_num(cube[..., column]).astype(np.int64))
        after[unknown] = UNKNOWN
        counts = transitions(before, after)
        lost = np.any(unknown, axis=1, keepdims=True)[..., None]
        ratio, score = conversion(np.where(lost, np.nan, counts))
        k = len(CLASSES)
        cell = np.eye(k * k)[before[None].astype(int) * k + after]  # (n, P, cells)
        with np.errstate(invalid="ignore"):
            change = np.einsum("np,npc->nc", cube[..., entropy].astype(np.float64), cell)
            change = change.reshape(counts.shape) / counts
        return {
            "answer_before": before, "answer_after": after, "transitions": counts,
            "conversion_ratio": ratio, "transition_score": score, "entropy_change": change,
        }  # fmt: skip

    def conflict_p_random(ds: xr.Dataset) -> dict[str, Any]:
        from confreg.derive import p_values

        ratio = ds["conversion_ratio"].transpose(subject, "after").values.astype(np.float64)
        both = np.column_stack([ratio, ds["transition_score"].values.astype(np.float64)])
        p, rank = p_values(ds, both), quantiles(ds, both)
        return {
            "conversion_p_random": p[:, :-1], "conversion_q_random": q_values(p[:, :-1], None),
            "transition_p_random": p[:, -1], "transition_q_random": q_values(p[:, -1]),
            "conversion_quantile": rank[:, :-1], "transition_quantile": rank[:, -1],
        }  # fmt: skip

    numbered = "0 parametric, 1 contextual, 2 neither, -1 not known"
    text = "share of random sets that convert at least as many"
    below = "share of random sets that are below it, ties half: "
    of_class, cells = (subject, "after"), (subject, "before", "after")
    ratio = "share of the prompts of other classes that become of the class"
    score = "share of prompts that change class"
    p = Variable("conversion_p_random", of_class, text)
    p_score = Variable("transition_p_random", (subject,), f"{text}, of any class")
    return [
        Derivation(
            answers_and_transitions,
            reads=("top1", "effects"),
            along=axes,
            gives=(
                Variable("answer_before", ("prompt",), f"answer unablated: {numbered}", "", "int8"),
                Variable(
                    "answer_after", (subject, "prompt"), f"answer ablated: {numbered}", "", "int8"
                ),
                Variable("transitions", cells, "prompts that go from one class to another", "1",
                         "int64"),
                Variable("conversion_ratio", of_class, ratio),
                Variable("transition_score", (subject,), score),
                Variable("entropy_change", cells, "mean change of the entropy", "nats"),
            ),
        ),
        Derivation(
            conflict_p_random,
            reads=("conversion_ratio", "transition_score"),
            gives=(
                p, q_variable(p, f"all chosen {subject}s and classes"),
                p_score, q_variable(p_score, f"all chosen {subject}s"),
                Variable("conversion_quantile", of_class, below + ratio),
                Variable("transition_quantile", (subject,), below + score),
            ),
        ),
    ]  # fmt: skip


def quantiles(ds: xr.Dataset, values: np.ndarray) -> np.ndarray:
    """Share of a chosen entry's controls that are below it, ties half: (n, E), as `p_values`."""
    found = np.full(values.shape, np.nan)
    for i, same in controls_of(ds):
        controls = values[same]
        ties, known = (controls == values[i]).sum(0), (~np.isnan(controls)).sum(0)
        with np.errstate(invalid="ignore"):  # no controls
            found[i] = ((controls < values[i]).sum(0) + ties / 2) / known
    found[np.isnan(values)] = np.nan
    return found


def _prompts(tokens: Text, answers: Answers) -> Axis:
    labels = {"prompt": Label(answers.document, "document of the prompt, counted from 0")}
    names = tokens.table.marks.get("prompt_id")
    if names is not None:
        labels["prompt_name"] = Label(names[answers.token], "prompt_id of the document")
    return Axis("prompt", labels)
