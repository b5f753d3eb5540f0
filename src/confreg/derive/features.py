"""What can be said of a token from its text: features, in words.

What holds for every language comes first; endings and beginnings are English.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from confreg.errors import ConfregError

SYMBOLS = tuple(".,;:!?'\"`()[]{}<>-_/\\|@#$%&*+=~^")
ENDINGS = ("ing", "ed", "s", "ly", "er", "est", "ion", "ment", "able", "ive", "al", "ful", "ity")
BEGINNINGS = ("un", "re", "in", "dis", "pre", "con", "de", "ex", "en", "over", "sub", "trans")
FREQUENT = 200
"""How many of the most frequent tokens are features by themselves, however they are spelled."""


def features(texts: Sequence[str], counts: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Features by name, and which of some texts have them, (U,) bool.

    Gurnee et al. 2024 (arXiv 2401.12181), section 4.3.

    Parameters
    ----------
    texts : sequence of str
        Different ones.
    counts : ndarray (U,)
        How often each occurs.
    """
    for name, has in _rules():
        yield name, np.array([has(text) for text in texts], dtype=bool)
    words = np.array([text.strip().lower() for text in texts], dtype=object)
    spelled, which = np.unique(words, return_inverse=True)
    total = np.bincount(which, weights=counts, minlength=len(spelled))
    for number in np.argsort(-total, kind="stable")[:FREQUENT]:
        if spelled[number]:
            yield f"the token {str(spelled[number])!r}", which == number


def before(values: np.ndarray, position: np.ndarray, nothing: Any) -> np.ndarray:
    """What stands before each token in its sequence, (T,): ``nothing`` before the first.

    Parameters
    ----------
    values, position : ndarray (T,)
        Of tokens, sequence after sequence; a sequence begins at position 0.
    nothing
        Of the type of the values.
    """
    found = np.append(nothing, values[:-1]).astype(values.dtype)
    found[position == 0] = nothing
    return found


def usable(
    sides: Sequence[tuple[Sequence[str], np.ndarray]], least: int
) -> list[tuple[str, int, np.ndarray]]:
    """Features of tokens, and of those before them, that enough tokens have, and enough lack.

    Parameters
    ----------
    sides : two pairs of texts (U,) and counts (U,)
        Of the tokens, and of those before them.
    least : int

    Returns
    -------
    list of (str, int, ndarray)
        The name, which side it is of, and which of its texts have it.

    Raises
    ------
    ConfregError
        There are none.
    """
    found = [
        (prefix + name, side, has)
        for side, (prefix, (texts, counts)) in enumerate(zip(("", "after "), sides))
        for name, has in features(texts, counts)
        if least <= counts[has].sum() <= counts.sum() - least
    ]
    if not found:
        raise ConfregError(
            f"No feature of the tokens is there at {least} kept tokens and absent at as many: give "
            "more text, or a lower least."
        )
    return found


def information(on: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mutual information of a token's group and on or off, nats, (n,).

    Parameters
    ----------
    on : ndarray (n, P)
        At how many tokens of each group it is on.
    sizes : ndarray (P,)
        Tokens of each group.
    """
    found = np.zeros(len(on))
    for count in (on, sizes - on):
        share = count.sum(1, keepdims=True) / sizes.sum()
        ratio = np.divide(count, sizes * share, out=np.ones_like(count), where=count > 0)
        found += (count * np.log(ratio)).sum(1) / sizes.sum()
    return np.maximum(found, 0)


def first_largest(reduction: np.ndarray) -> np.ndarray:
    """The feature of the largest reduction, (n,); of equal ones, up to rounding, the first."""
    return np.round(np.nan_to_num(reduction, nan=-1), 9).argmax(1)


def _rules() -> Iterator[tuple[str, Callable[[str], bool]]]:
    """What can be said of a token's text; what holds for every language comes first."""
    yield "begins with a space", lambda t: t[:1] == " "
    yield "begins with a letter", lambda t: t[:1].isalpha()
    yield "white space", lambda t: bool(t) and t.isspace()
    yield "has a line break", lambda t: "\n" in t
    yield "letters", lambda t: t.strip().isalpha()
    yield "lower case", lambda t: t.strip().isalpha() and t.strip().islower()
    yield "ALL CAPITALS", lambda t: len(t.strip()) > 1 and t.strip().isalpha() and t.isupper()
    yield "Capitalised", lambda t: t.strip()[:1].isupper() and not t.strip()[1:2].isupper()
    yield "a single letter", lambda t: len(t.strip()) == 1 and t.strip().isalpha()
    yield "digits", lambda t: t.strip().isdecimal()
    yield "has a digit", lambda t: any(map(str.isdecimal, t))
    yield "symbols", lambda t: bool(t.strip()) and not any(map(str.isalnum, t))
    yield "letters and others", lambda t: not t.strip().isalpha() and any(map(str.isalpha, t))
    yield "outside ASCII", lambda t: not t.isascii()
    yield "no character of its own", lambda t: "\\x" in t
    for kind, said in (("P", "punctuation"), ("S", "a mathematical or currency sign")):
        yield said, lambda t, kind=kind: len(t.strip()) == 1 and _category(t.strip()) == kind
    for length in (1, 2, 3, 4):
        yield (
            f"{length} character{'s' if length > 1 else ''} long",
            lambda t, k=length: len(t.strip()) == k,
        )
    yield "5 to 7 characters long", lambda t: 5 <= len(t.strip()) <= 7
    yield "8 characters or longer", lambda t: len(t.strip()) >= 8
    for symbol in SYMBOLS:
        yield f"has {symbol!r}", lambda t, s=symbol: s in t
    for ending in ENDINGS:
        yield (
            f"ends in -{ending}",
            lambda t, e=ending: _word(t).endswith(e) and len(_word(t)) > len(e),
        )
    for first in BEGINNINGS:
        yield f"begins with {first}-", lambda t, f=first: t[:1] == " " and _word(t).startswith(f)


def _word(text: str) -> str:
    text = text.strip().lower()
    return text if text.isalpha() else ""


def _category(character: str) -> str:
    return unicodedata.category(character)[0]
