"""What is read off a prediction, and what an edit does to it.

A measure is a function of logits and targets, with a name and a unit:

    def correct(logits, targets):
        p = logits.softmax(-1).gather(-1, targets.clamp_min(0)[:, None])[:, 0]
        return torch.where(targets >= 0, p, torch.nan)

    probability = Measure("probability", "1", "probability of the correct token", of=correct)
    effects = [probability.total, probability.direct, loss.total]
"""

import torch

from .prediction import Prediction
from .temperature import tempering

TOTAL = ", everything downstream recomputed"
DIRECT = ", final norm's scale frozen"
FREQUENCY_DIRECT = ", token-frequency component put back"


class Measure:
    """Something that is read off predictions of a next token.

    Parameters
    ----------
    name : str
        An identifier: ``"loss"``.
    units : str
        ``"nats"``, or ``"1"`` for a pure number.
    long_name : str
        What it is.
    of : callable, ``of(logits (m, V), targets (m,), *given) -> (m,)``
        Logits are final ones, float32 or float64; a target is -1 where there is none.
    change : callable, ``change(after, before) -> (m,)``, optional
        What an edit's effect is, from the measure with and without it. By default the difference.
    compared : callable, ``compared(before, after) -> (m,)``, optional
        In place of ``of``, for what has no value without an edit: from original and edited logits,
        float64, (m, V) each.
    tilted : {None, "target", "excess", "unigrams"}
        Whether the measure's change follows from three expectations under p, A = E_p[e^f],
        B = E_p[y e^f] and C = E_p[f e^f], f being what the edit adds to the logits: it is log A
        less f at the target, (B + C)/A, or the mean of f under the unigrams. Such a measure has
        the engine ``Series``, see docs/effects.md.
    given : tuple of str
        Further arguments of ``of``: ``"log_frequency"`` (V,), log p_freq with -inf at rows of the
        unembedding that no token owns; ``"norm_scale"`` (m,), the final norm's scale, which of
        edits into one direction only the engine ``Forward`` knows. A measure that is ``shared``
        finds in its prediction's ``given`` also ``"accepted"`` (m, A), where more than the next
        token is a right prediction.
    dtype : str
        Of the measure where nothing is edited.
    effect : str, optional
        What its effect is called. By default "change of" and ``long_name``, and how it is mediated.
    pathways : tuple of str
        Those that make sense.
    bare : bool
        Whether the effect has the measure's own name, for measures with one pathway.
    shared : bool
        Whether ``of`` takes a `Prediction`, or ``compared`` a `Comparison`: what several measures
        need of them is then computed once.
    needs : tuple of str
        Names of effects that are measured along with it.
    reduced : callable, ``reduced(sums) -> (n,)``, optional
        Its mean over tokens, from the sums over tokens of all effects by name, where that is not
        the mean of the tokens' values: a ratio of means is no mean of ratios.
    along : {None, "target", "contrast", "contrast_whole"}
        What it is a sum along, of what ``of`` reads at single predictions: the tokens of a prompt's
        target; or, of the target's loss less the contrast's and with the sign changed, so of their
        log p, over their first tokens or over all. The sum is at the prompt's last token, which
        predicts the target's first, and NaN at others.

    Attributes
    ----------
    comparing : bool
        Whether it has ``compared``.
    total, direct, frequency_direct : Effect
        The effects on this measure: everything downstream recomputed; the final norm's scale
        frozen; the logits' component along the token frequencies put back.
    """

    def __init__(
        self,
        name,
        units,
        long_name,
        of=None,
        change=None,
        compared=None,
        tilted=None,
        given=(),
        dtype="float32",
        effect=None,
        pathways=("total", "direct", "frequency_direct"),
        bare=False,
        shared=False,
        needs=(),
        reduced=None,
        along=None,
    ):
        if (of is None) == (compared is None):
            raise ValueError(f"measure {name!r} needs either `of` or `compared`")
        self.name = name
        self.units = units
        self.long_name = long_name
        self.function = of or nothing
        self.difference = change
        self.comparing = compared is not None
        self.comparison = compared or nothing
        self.tilted = tilted
        self.given = tuple(given)
        self.dtype = dtype
        self.effect = effect
        self.pathways = tuple(pathways)
        self.bare = bare
        self.shared = shared
        self.needs = tuple(needs)
        self.reduced = reduced
        self.along = along
        self.total = Effect(self, "total")
        self.direct = Effect(self, "direct")
        self.frequency_direct = Effect(self, "frequency_direct")

    def __repr__(self):
        return f"Measure({self.name!r}, {self.units!r}, {self.long_name!r})"

    def of(self, logits, targets, given=None):
        """The measure of some predictions, (m,)."""
        return self.read(Prediction(logits, targets, given))

    def read(self, prediction):
        """The measure of a `Prediction`, (m,)."""
        if self.shared:
            return self.function(prediction)
        given = [prediction.known_as(name, self.name) for name in self.given]
        found = self.function(prediction.logits, prediction.targets, *given)
        return self.checked(found, prediction.targets)

    def change(self, after, before):
        """The effect, (m,), from the measure with the edit and without."""
        if self.difference is None:
            return after - before
        return self.checked(self.difference(after, before), after)

    def compared(self, comparison):
        """The effect, (m,), of a measure that compares; from a `Comparison`."""
        if self.shared:
            return self.comparison(comparison)
        before = comparison.before.expand_as(comparison.after)
        found = self.comparison(before, comparison.after)
        return self.checked(found, comparison.after[:, 0])

    def checked(self, found, like):
        """What the user's function returned, if it has one value a prediction."""
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        if shape != (len(like),):
            raise ValueError(
                f"measure {self.name!r} returned {shape} for {len(like)} predictions: wanted is a "
                f"tensor of shape ({len(like)},), one number a prediction"
            )
        return found


def nothing(*_):
    """What stands for the function that a measure does not have."""
    raise ValueError("a measure is either read off one prediction or compares two")


class Effect:
    """What an edit does to a measure, by a pathway.

    Made by `Measure`: ``loss.total``.

    Attributes
    ----------
    measure : Measure
    pathway : str
        ``"total"``, ``"direct"`` or ``"frequency_direct"``.
    name : str
        ``"loss_total"``.
    quantity : str
        The measure's name.
    units, long_name : str
    """

    def __init__(self, measure, pathway):
        self.measure = measure
        self.pathway = pathway
        self.quantity = measure.name
        self.needs = measure.needs
        self.units = measure.units
        self.name = measure.name if measure.bare else measure.name + "_" + pathway
        mediated = {"total": TOTAL, "direct": DIRECT, "frequency_direct": FREQUENCY_DIRECT}
        mediated = mediated[pathway]
        if measure.effect is None:
            self.long_name = "change of " + measure.long_name + mediated
        else:
            self.long_name = measure.effect + ("" if pathway == "total" else mediated)

    def __repr__(self):
        return f"Effect({self.name!r})"


def shifted(prediction):
    """Logits less the largest, (m, V)."""
    return prediction.logits - prediction.logits.amax(-1, keepdim=True)


def at_target(prediction):
    """Shifted logit of the target, (m, 1)."""
    rows = prediction.once(shifted)
    return rows.gather(-1, prediction.targets.clamp_min(0)[:, None])


def weights(prediction):
    """Exponentials of the shifted logits, (m, V)."""
    return prediction.once(shifted).exp()


def weight(prediction):
    """Their sum, (m,)."""
    return prediction.once(weights).sum(-1)


def log_weight(prediction):
    """Its logarithm, (m,)."""
    return prediction.once(weight).log()


def mean_shifted(prediction):
    """Mean under p of the shifted logits, (m,)."""
    total = prediction.once(weight)
    prediction.once(weights)
    # In the weights' place, which nothing else needs any more.
    weighted = prediction.known.pop(weights).mul_(prediction.once(shifted))
    return weighted.sum(-1) / total


def read_loss(prediction):
    """−log p of the target; NaN where there is none."""
    lost = prediction.once(log_weight) - prediction.once(at_target)[:, 0]
    return torch.where(prediction.targets >= 0, lost, torch.nan)


def read_entropy(prediction):
    """−Σ p log p."""
    return prediction.once(log_weight) - prediction.once(mean_shifted)


def places(prediction):
    """How many tokens are likelier than the target."""
    return (prediction.once(shifted) > prediction.once(at_target)).sum(-1)


def read_rank(prediction):
    """Rank of the target, -1 where there is none."""
    return torch.where(prediction.targets >= 0, prediction.once(places), -1)


def read_reciprocal_rank(prediction):
    """1/(rank + 1), NaN without a target."""
    reciprocal = 1 / (1 + prediction.once(places)).to(prediction.logits.dtype)
    return torch.where(prediction.targets >= 0, reciprocal, torch.nan)


def likeliest(prediction):
    """The likeliest token."""
    return prediction.once(shifted).argmax(-1)


def read_top1(prediction):
    """The likeliest token."""
    return prediction.once(likeliest)


def read_confidence(prediction):
    """Probability of the likeliest token, whose shifted logit is 0."""
    return 1 / prediction.once(weight)


def read_correct(prediction):
    """1 where the likeliest token is the target, else 0; NaN where there is none.

    Where answers begin, the first token of any that is accepted is right. Of tokens that are
    equally likely it is the first, as in greedy decoding.
    """
    right = prediction.given.get("accepted", prediction.targets[:, None])
    hit = (prediction.once(likeliest)[:, None] == right).any(-1).to(prediction.logits.dtype)
    return torch.where(prediction.targets >= 0, hit, torch.nan)


def read_kl_frequency(prediction):
    """D(p_freq ‖ p)."""
    log_frequency = prediction.known_as("log_frequency", "kl_frequency")
    # Rows of the unembedding that no token owns take no part.
    real = log_frequency > -torch.inf
    p = torch.where(real, log_frequency, -torch.inf).to(prediction.logits.dtype).exp()
    negentropy = (p * torch.where(real, log_frequency, 0.0)).sum()
    return negentropy + prediction.once(log_weight) - prediction.once(shifted) @ p


def read_norm_scale(prediction):
    """The final norm's divisor s, which is handed on as it is."""
    return prediction.known_as("norm_scale", "norm_scale")


def whether_changed(after, before):
    """1.0 where it is another."""
    return (after != before).float()


def read_divergence(comparison):
    """KL(p ‖ p')."""
    return comparison.once(tempering)["divergence"]


def read_tempered_divergence(comparison):
    """min_β KL(p_β ‖ p')."""
    return comparison.once(tempering)["divergence_tempered"]


def read_temperature_share(comparison):
    """The share of KL(p ‖ p') that the best temperature removes."""
    return comparison.once(tempering)["temperature_share"]


def share_of_sums(sums):
    """The share of the mean divergence that each token's best temperature removes."""
    return 1 - sums["divergence_tempered_total"] / sums["divergence_total"]


loss = Measure("loss", "nats", "loss", read_loss, tilted="target", shared=True)
entropy = Measure("entropy", "nats", "entropy", read_entropy, tilted="excess", shared=True)
rank = Measure(
    "rank", "1", "rank of the correct token, 0 the likeliest, -1 if none", read_rank,
    dtype="int64", effect="change of the correct token's rank", shared=True,
)  # fmt: skip
reciprocal_rank = Measure(
    "reciprocal_rank", "1", "1/(rank + 1) of the correct token", read_reciprocal_rank,
    effect="change of the correct token's 1/(rank + 1)", shared=True,
)  # fmt: skip
top1 = Measure(
    "top1", "1", "vocabulary index of the likeliest token", read_top1, whether_changed,
    dtype="int64", effect="1 where the most likely token changes", shared=True,
)  # fmt: skip
confidence = Measure(
    "confidence", "1", "probability of the likeliest token", read_confidence, shared=True
)
correct = Measure(
    "correct", "1", "1 where the likeliest token is the correct one, else 0", read_correct,
    effect="1 where the prediction becomes correct, -1 where it becomes wrong", shared=True,
)  # fmt: skip
target_loss = Measure(
    "target_loss", "nats", "loss of the whole target", read_loss, tilted="target", shared=True,
    along="target",
)  # fmt: skip
contrast = Measure(
    "contrast", "nats", "log p(target) − log p(contrast) of their first tokens", read_loss,
    tilted="target", shared=True, along="contrast",
)  # fmt: skip
contrast_whole = Measure(
    "contrast_whole", "nats", "log p(target) − log p(contrast) of both as a whole", read_loss,
    tilted="target", shared=True, along="contrast_whole",
)  # fmt: skip
norm_scale = Measure(
    "norm_scale", "1", "scale s of the final normalisation", read_norm_scale,
    given=("norm_scale",), effect="change of the final norm's scale", pathways=("total",),
    shared=True,
)  # fmt: skip
kl_frequency = Measure(
    "kl_frequency", "nats", "D(p_freq ‖ p_model), from the unigrams to the prediction",
    read_kl_frequency, tilted="unigrams", given=("log_frequency",), shared=True,
)  # fmt: skip
divergence = Measure(
    "divergence", "nats", "D(p ‖ p') from the unablated prediction", compared=read_divergence,
    effect="D(p ‖ p') from the unablated prediction", shared=True,
)  # fmt: skip
tempered_divergence = Measure(
    "divergence_tempered", "nats", "what the best temperature leaves of D(p ‖ p')",
    compared=read_tempered_divergence, effect="what the best temperature leaves of D(p ‖ p')",
    shared=True,
)  # fmt: skip
temperature_share = Measure(
    "temperature_share", "1", "share of D(p ‖ p') that the best temperature removes",
    compared=read_temperature_share, effect="share of D(p ‖ p') that the best temperature removes",
    pathways=("total",), bare=True, shared=True,
    needs=("divergence_total", "divergence_tempered_total"), reduced=share_of_sums,
)  # fmt: skip

SURE = (confidence.total, confidence.direct, correct.total, correct.direct)
"""How sure the model is, and whether it is right."""
ANSWERED = tuple(
    effect
    for measure in (target_loss, contrast, contrast_whole)
    for effect in (measure.total, measure.direct)
)
"""Of prompts with targets, how likely answers are as a whole, and against others."""
