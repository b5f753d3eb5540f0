"""The words that recipes share: what a variable is called, means and is measured in.

Everything that shows numbers to people takes its symbols, headings and meanings from here: the
accessor, the command line and the page. A variable that is not here is called by its own name
and described by its own attributes::

    >>> word("te").symbol, word("te").units
    ('TE', 'nats')
    >>> word("my_variable").symbol
    'my variable'
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """What is known of a variable by its name.

    Attributes
    ----------
    name
        The variable's name in a dataset.
    symbol
        How it is written in plots, in text and in the page's tables.
    units
        ``"nats"``, ``"1"`` for pure numbers, ``""`` where it has none or each entry has its own.
    long_name
        One phrase, as the dataset carries it.
    meaning
        A longer phrase for the page's glossary; it may hold ``{frozen}``, what the direct
        effect keeps. Empty: the word is not in the glossary.
    heading
        How a narrow table heads the column, by default the symbol.
    of
        How a column for one quantity is written if the variable has an axis of quantities:
        ``"mean |{}|"``. Empty: the symbol, a colon and the quantity.
    percent
        Whether the page writes it in per cent.
    """

    name: str
    symbol: str = ""
    units: str = ""
    long_name: str = ""
    meaning: str = ""
    heading: str = ""
    of: str = ""
    percent: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "symbol", self.symbol or self.name.replace("_", " "))
        object.__setattr__(self, "heading", self.heading or self.symbol)


_WORDS = (
    # Columns of tables come in this order.
    Word(
        "te",
        "TE",
        "nats",
        "mean absolute total effect over kept tokens",
        "total effect: mean over kept tokens of |Δ loss| when the neuron is ablated and "
        "everything downstream recomputed",
    ),
    Word(
        "de",
        "DE",
        "nats",
        "mean absolute direct effect over kept tokens",
        "direct effect: the same with {frozen} kept as in the unablated model",
    ),
    Word(
        "mediated",
        "mediated",
        "1",
        "share of the total effect that is mediated",
        "1 − DE/TE, the share of the total effect that needs {frozen}; negative where freezing "
        "it makes the effect larger",
        heading="1 − DE/TE",
        percent=True,
    ),
    Word("te_mediated", "TE − DE", "nats", "te - de: mediated part of the total effect",
         "the part of TE that needs {frozen}, in nats"),
    Word(
        "w_out_norm",
        "‖w_out‖",
        "1",
        "norm of the output weight",
        "norm of the neuron’s output weight",
    ),
    Word(
        "logit_var",
        "LogitVar",
        "1",
        "variance over the vocabulary of cos(w_out, unembedding)",
        "variance over the vocabulary of the cosine between the output weight and the rows of "
        "the unembedding, the final norm’s weight folded in",
    ),
    Word(
        "null_fraction",
        "ρ",
        "1",
        "share of w_out in the bottom singular vectors of the folded unembedding",
        "share of the output weight’s norm within the unembedding’s effective null space",
    ),
    Word(
        "frequency_cosine",
        "cos(w, v)",
        "1",
        "cosine of what the neuron writes to the logits and the token-frequency direction",
        "cosine between what the neuron writes to the logits and the token-frequency direction, "
        "log p_freq less its mean over the vocabulary",
    ),
    Word(
        "temperature_share",
        "temperature share",
        "1",
        "share of the mean D(p ‖ p') that each token's best temperature removes",
        "share of the divergence D(p ‖ p′) from the ablated prediction that the best single "
        "temperature removes",
    ),
    Word(
        "ablation_value",
        "ablated to",
        "1",
        "value that replaces the activation",
        "value that replaces the activation",
    ),
    Word("effect_abs_mean", "mean |effect|", "", "mean absolute effect over kept tokens",
         of="mean |{}|"),
    Word("effect_mean", "mean effect", "", "mean effect over kept tokens", of="mean {}"),
    Word("p_random", "p", "1",
         "share of random sets whose mean absolute effect is at least as large", of="p of {}"),
    Word("q_random", "q", "1",
         "Benjamini-Hochberg q of p_random over all chosen sets, effect by effect", of="q of {}"),
    Word("effect_mean_above", "mean effect above", "",
         "mean effect over kept tokens on which the neuron is above its mean",
         of="mean {} above the mean"),
    Word("mean_activation", "mean activation", "1", "mean activation over the tokens of mean_over"),
    Word("activation_deviation", "σ of the activation", "1",
         "standard deviation of the activation over the tokens of mean_over"),
    Word("above_share", "above the mean", "1", "share of kept tokens that are above the mean"),
    Word("mean_first", "mean, first", "1",
         "mean activation over the compared tokens of the first occurrence"),
    Word("mean_second", "mean, second", "1",
         "mean activation over the compared tokens of the second occurrence"),
    Word("shift", "change at the repeat", "1",
         "mean change of the activation from the first occurrence to the second, token by token"),
    Word("shift_sd", "sd of change", "1",
         "standard deviation over tokens of the change from the first occurrence to the second"),
    Word("shift_sigma", "change (σ)", "1",
         "mean change over the standard deviation of the activation at the compared tokens"),
    Word("shift_p", "p of the change", "1",
         "share of random neurons whose change in standard deviations is at least as large"),
    Word("shift_q", "q of the change", "1",
         "Benjamini-Hochberg q of shift_p over all chosen neurons"),
    Word("null_fraction_chance", "ρ of a random direction", "1",
         "null_fraction that a random direction has on average"),
    Word("null_fraction_chance_max", "largest ρ of as many random directions", "1",
         "null_fraction of the largest among as many random directions as there are neurons"),
    Word("accuracy", "accuracy", "1",
         "share of kept tokens at which the likeliest token is the correct one, ablated"),
    Word("mean_confidence", "mean confidence", "1",
         "mean probability of the likeliest token, ablated"),
    Word("ece", "ECE", "1", "expected calibration error, bins of equal width, ablated"),
    Word("ece_adaptive", "adaptive ECE", "1",
         "expected calibration error, bins of equally many tokens, ablated"),
    Word("mce", "MCE", "1", "largest calibration error of a bin of equal width, ablated"),
    Word("brier", "Brier", "1",
         "Brier score of the likeliest token being the correct one, ablated"),
    # By group.
    Word("effect_mean_by", "mean effect", "", "mean effect by group", of="mean {}"),
    Word("effect_abs_mean_by", "mean |effect|", "", "mean absolute effect by group",
         of="mean |{}|"),
    Word("te_by", "TE by group", "nats", "mean absolute total effect by group"),
    Word("de_by", "DE by group", "nats", "mean absolute direct effect by group"),
    Word("te_mediated_by", "TE − DE by group", "nats", "te_by - de_by"),
    Word("mediated_by", "mediated by group", "1",
         "share of the total effect that is mediated, by group", percent=True),
    Word("group_size", "kept tokens", "1", "kept tokens of the group"),
    Word("accuracy_by", "accuracy", "1", "accuracy by group, ablated"),
    Word("mean_confidence_by", "mean confidence", "1", "mean confidence by group, ablated"),
    Word("ece_by", "ECE", "1", "expected calibration error by group, ablated"),
    Word("ece_adaptive_by", "adaptive ECE", "1", "adaptive ECE by group, ablated"),
    Word("mce_by", "MCE", "1", "largest calibration error by group, ablated"),
    Word("brier_by", "Brier", "1", "Brier score by group, ablated"),
    Word("calibration_tokens_by", "tokens", "1", "kept tokens of the group that count"),
    # Along tokens.
    Word("effects", "effect", "", "change of the prediction against the unablated model", of="{}"),
    Word("activation", "activation", "1", "activation of the neuron"),
    Word("above_mean", "above its mean", "", "whether the neuron is above its mean activation"),
    Word("loss", "loss", "nats", "loss of the unablated model on the next token",
         "−log p of the next token, in nats"),
    Word("entropy", "entropy", "nats", "entropy of the unablated model's prediction",
         "−Σ p log p over the vocabulary, in nats: how unsure the prediction is"),
    Word("norm_scale", "norm scale", "1", "scale s of the final normalisation",
         "scale s by which the final norm divides: the larger, the flatter the prediction"),
    Word("rank", "rank", "1", "rank of the correct token, 0 the likeliest, -1 if none",
         "how many tokens are likelier than the next one"),
    Word("top1", "top-1", "", "vocabulary index of the likeliest token"),
    Word("confidence", "confidence", "1", "probability of the likeliest token"),
    Word("correct", "correct", "1", "1 where the likeliest token is the correct one, else 0"),
    Word("target_loss", "loss of the target", "nats", "loss of the whole target"),
    Word("contrast", "contrast", "nats",
         "log p(target) − log p(contrast) of their first tokens"),
    Word("contrast_whole", "contrast of wholes", "nats",
         "log p(target) − log p(contrast) of both as a whole"),
    Word("kl_frequency", "KL to unigrams", "nats",
         "D(p_freq ‖ p_model) of the unablated model: from the unigrams to its prediction"),
    # Along other axes.
    Word("singular_value", "singular value", "1", "singular value of the folded unembedding"),
    Word("frequency_cosine_all", "cos(w, v)", "1", "frequency_cosine of every neuron of the model"),
    Word("prefix_score", "prefix-matching score", "1",
         "prefix-matching score: mean attention to what followed the token before"),
    Word("activation_change", "change of the activation", "1",
         "change of the neuron's activation against the unablated model"),
    Word("activation_change_mean", "mean change of the activation", "1",
         "mean change of the neuron's activation over kept tokens"),
    Word("activation_change_abs_mean", "mean |change of the activation|", "1",
         "mean absolute change of the neuron's activation over kept tokens"),
    Word("activation_p_random", "p of the change of the activation", "1",
         "share of random sets whose mean absolute change of the activation is at least as large"),
    Word("activation_q_random", "q of the change of the activation", "1",
         "Benjamini-Hochberg q of activation_p_random over all chosen sets and watched neurons"),
    Word("taken_back", "taken back", "1",
         "share of the way from the first occurrence to the second that the ablation undoes"),
    Word("job_bytes_up", "sent", "bytes", "size of the request"),
    Word("job_bytes_down", "received", "bytes", "size of the result"),
    Word("job_seconds", "server time", "seconds", "the server's own execution time"),
    Word("job_id", "job", "", "job on the server"),
    # Labels.
    Word("keep", "kept", "", "whether reductions over tokens include the token",
         "tokens from position 3 on that have a next token, neither of the two being special"),
)  # fmt: skip

WORDS: dict[str, Word] = {word.name: word for word in _WORDS}
"""Every shared word by its name, in the order in which tables show columns."""

REPEATED = {
    "keep": "tokens of second occurrences from the sequence’s position 3 on whose next token "
    "belongs to the occurrence, neither of the two being special",
}
"""What a word means where a text comes again, instead of its usual meaning."""

ENGINES = {
    "series": "engine that expands the change of the prediction in powers of the edit, within the "
    "tolerance; other pairs are computed exactly",
    "exact": "engine that computes the edited prediction from the unedited one in closed form",
    "forward": "engine that runs the model again from the edit on",
}
"""What the engines of a run do."""

PATHWAYS = {
    "total": "",
    "direct": " (norm frozen)",
    "frequency_direct": " (frequency frozen)",
}
"""How the pathway of an effect is written behind its quantity; others stand as they are."""

RANKED_BY = ("te_mediated", "te", "excess_correlation", "effect_abs_mean", "te_change")
"""Variables by which an axis is ranked if it has one, the first of them that there is."""


def word(name: str) -> Word:
    """Return what is known of a variable, at least how its name is written."""
    return WORDS.get(name) or Word(name)


def ordered(names: list[str]) -> list[str]:
    """Return names of variables in the order in which tables show them, unknown ones last."""
    rank = {name: place for place, name in enumerate(WORDS)}
    return sorted(names, key=lambda name: rank.get(name, len(rank)))


def effect_label(quantity: str, pathway: str) -> str:
    """Write an effect for reading: loss and direct is "Δ loss (norm frozen)"."""
    change = "top-1 change" if quantity == "top1" else f"Δ {word(quantity).symbol}"
    return change + PATHWAYS.get(pathway, f" ({pathway.replace('_', ' ')})")


def split_effect(name: str) -> tuple[str, str]:
    """Take an effect's name apart, for stores that do not say its quantity and its pathway.

    ``"loss_frequency_direct"`` gives ``("loss", "frequency_direct")``; a name without a known
    pathway is split at its first underscore.
    """
    for pathway in sorted(PATHWAYS, key=len, reverse=True):
        if name.endswith(f"_{pathway}"):
            return name[: -len(pathway) - 1], pathway
    quantity, _, pathway = name.partition("_")
    return quantity, pathway
