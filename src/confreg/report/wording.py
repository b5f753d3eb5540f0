"""Numbers and names as a reader sees them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

MISSING = "–"

SYMBOLS = {
    "te": "TE",
    "de": "DE",
    "mediated": "mediated",
    "te_mediated": "TE − DE",
    "w_out_norm": "‖w_out‖",
    "logit_var": "LogitVar",
    "null_fraction": "ρ",
    "ablation_value": "ablated to",
    "frequency_cosine": "cos(w, v)",
    "singular_value": "singular value",
    "loss": "loss",
    "entropy": "entropy",
    "rank": "rank",
    "top1": "top-1 change",
    "norm_scale": "norm scale",
    "kl_frequency": "KL to unigrams",
    "temperature_share": "temperature share",
    "keep": "kept",
}
_VARIANTS = {
    "total": "",
    "direct": " (norm frozen)",
    "frequency_direct": " (frequency frozen)",
}


GLOSSARY = {
    "te": "total effect: mean over kept tokens of |Δ loss| when the neuron is ablated and "
    "everything downstream recomputed",
    "de": "direct effect: the same with {frozen} kept as in the unablated model",
    "mediated": "1 − DE/TE, the share of the total effect that needs {frozen}; negative where "
    "freezing it makes the effect larger",
    "w_out_norm": "norm of the neuron’s output weight",
    "logit_var": "variance over the vocabulary of the cosine between the output weight and the "
    "rows of the unembedding, the final norm’s weight folded in",
    "null_fraction": "share of the output weight’s norm within the unembedding’s effective null "
    "space",
    "frequency_cosine": "cosine between what the neuron writes to the logits and the "
    "token-frequency direction, log p_freq less its mean over the vocabulary",
    "temperature_share": "share of the divergence D(p ‖ p′) from the ablated prediction that "
    "the best single temperature removes",
    "ablation_value": "value that replaces the activation",
    "keep": "tokens from position 3 on that have a next token, neither of the two being special",
}


REPEATED = {
    "keep": "tokens of second occurrences from the sequence’s position 3 on whose next token "
    "belongs to the occurrence, neither of the two being special",
}
"""What a word means where a text comes again."""


def number(value: float, digits: int = 3) -> str:
    """Write a number for reading: a true minus, powers of ten when it is far from one."""
    value = float(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa}×10{power}".replace("-", "−")
    if value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """Write a change: as ``number``, with a plus where it is positive."""
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def percent(share: float) -> str:
    """Write a share in per cent; far negative ones, of small totals, as such."""
    if not math.isfinite(share):
        return MISSING
    # No break between a number and its sign.
    return "< −1000\u00a0%" if share < -10 else f"{100 * share:.0f}\u00a0%".replace("-", "−")


def effect_label(name: str) -> str:
    """Write an effect's name for reading: ``loss_direct`` is "Δ loss (norm frozen)"."""
    measure, _, variant = name.partition("_")
    for known in sorted(SYMBOLS, key=len, reverse=True):
        if name.startswith(known + "_"):
            measure, variant = known, name[len(known) + 1 :]
            break
    change = SYMBOLS.get(measure, measure)
    change = change if change.endswith("change") else f"Δ {change}"
    return change + _VARIANTS.get(variant, f" ({variant})")


def mediator(ds: xr.Dataset) -> tuple[str, str]:
    """Return what the direct effect freezes, and what neurons that act through it are called."""
    if "frequency" in str(ds.attrs.get("mediated_direct", "")):
        return "the token-frequency direction", "Token-frequency neurons"
    return "the final norm", "Entropy neurons"


def glossary(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Return a symbol and its meaning for everything in the dataset that the page shows."""
    frozen = "the norm’s scale"
    if "frequency" in mediator(ds)[0]:
        frozen = "the logits’ component along the token-frequency direction"
    known = GLOSSARY | (REPEATED if "occurrence" in ds else {})
    return [
        (SYMBOLS[name], text.format(frozen=frozen)) for name, text in known.items() if name in ds
    ]


def label(ds: xr.Dataset, name: str, unit: bool = True) -> str:
    """Return a variable's symbol, or its name, with its unit unless that is 1."""
    symbol = SYMBOLS.get(name, name.replace("_", " "))
    units = str(ds[name].attrs.get("units", "")) if unit and name in ds else ""
    return f"{symbol} ({units})" if units not in ("", "1") else symbol


def long_name(ds: xr.Dataset, name: str) -> str:
    """Return a variable's description as the dataset gives it, or an empty string."""
    return str(ds[name].attrs.get("long_name", "")) if name in ds else ""
