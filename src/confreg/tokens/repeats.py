"""Sequences in which a text comes again: a piece of a corpus, random tokens, or an n-gram.

Every table made here has these marks beside its other labels, each (T,):

occurrence
    0 in a repeated text's first occurrence, 1 in its second; -1 outside: int64.
aligned
    Position from the beginning of the occurrence, -1 outside: int64. Tokens of one sequence with
    the same ``aligned`` are the same token.
matched
    Whether the text goes on after the second occurrence as it did after the first, bool: one value
    for a sequence's occurrences, True where a whole piece is repeated, False outside.
compared
    Whether the token counts in means over an occurrence, bool: it is in one, with a next token that
    belongs to it, its position is 3 or more, and neither of the two is special. The table's
    ``keep`` are those of the second occurrence.

For example::

    table = repeats.of_text(corpus, tokenizer, length=100, max_tokens=2010)
    table = repeats.of_random_tokens(tokenizer, length=50, count=8)
    table = repeats.of_ngrams(corpus, tokenizer, ngram=6, max_tokens=5000)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from confreg.errors import ConfregError
from confreg.tokens import table as tables
from confreg.tokens.pieces import piece_texts
from confreg.tokens.sources import Corpus
from confreg.tokens.table import TokenTable, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


BANNED = "repeated,special,wordless"
"""What an n-gram may not have, unless something else is asked for."""
_MAY_BE_BANNED = ("repeated", "special", "wordless", "newline", "piece")


@dataclass(frozen=True)
class _Piece:
    """A sequence, where its two occurrences begin, and whether they go on alike."""

    ids: list[int]
    starts: tuple[int, int]
    length: int
    matched: bool = True


def of_text(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int = 100,
    count: int | None = None,
    separator: str = "",
    max_tokens: int | None = None,
) -> TokenTable:
    """Pieces of a corpus, each repeated once: BOS, the piece, the separator, the piece.

    Pieces follow each other in the corpus, within documents.

    Parameters
    ----------
    corpus
        From :func:`confreg.tokens.read`.
    tokenizer
        A transformers tokenizer.
    length
        Tokens in a piece, at least 4.
    count
        How many sequences; None: as many as ``max_tokens`` and the corpus hold, at least one.
    separator
        Text between the two.
    max_tokens
        At most as many tokens in the table; None: no limit.

    Raises
    ------
    ConfregError
        The numbers make no sense, or the corpus has no document of ``length`` tokens.
    """
    between = _between(tokenizer, separator)
    pieces = (
        ids[start : start + length]
        for _, ids in tables.encode(corpus, tokenizer)
        for start in range(0, len(ids) - length + 1, length)
    )
    sequences = _doubled(pieces, tokenizer, length, between)
    taken = _take(sequences, count, max_tokens, _size(tokenizer, length, between))
    if not taken:
        raise ConfregError(
            f"The corpus ({corpus.name}) has no document of {length} tokens to repeat: give longer "
            "text, or a smaller length."
        )
    return _table(taken, tokenizer, f"{corpus.name}: {length} tokens, repeated")


def of_random_tokens(
    tokenizer: PreTrainedTokenizerBase,
    length: int = 50,
    count: int | None = None,
    separator: str = "",
    max_tokens: int | None = None,
    seed: int = 0,
    rows: int | None = None,
) -> TokenTable:
    """Random tokens, repeated once: BOS, the tokens, the separator, the tokens.

    No sequence has a token twice but for the repeat, and none is special. With no separator, what
    followed a token of the second occurrence the first time stands ``length - 1`` positions before
    it.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    length, count, separator, max_tokens
        As of :func:`of_text`; one of ``count`` and ``max_tokens`` must be given.
    seed
        Of the drawing.
    rows
        Tokens that the model has: none beyond is drawn.

    Raises
    ------
    ConfregError
        The numbers make no sense, or the tokenizer has fewer than ``length`` tokens.
    """
    if count is None and max_tokens is None:
        raise ConfregError("Repeats of random tokens need a count, or max_tokens.")
    between = _between(tokenizer, separator)
    known = np.array(sorted(tokenizer.get_vocab().values()))
    known = known if rows is None else known[known < rows]
    added = [*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids]
    usable = np.setdiff1d(known, np.array(added, dtype=known.dtype))
    if length > len(usable):
        raise ConfregError(f"The tokenizer has {len(usable)} tokens: too few to draw {length}.")
    rng = np.random.default_rng(seed)
    pieces = iter(lambda: rng.choice(usable, length, replace=False).tolist(), None)
    sequences = _doubled(pieces, tokenizer, length, between)
    taken = _take(sequences, count, max_tokens, _size(tokenizer, length, between))
    return _table(taken, tokenizer, f"{length} random tokens, repeated (seed {seed})")


def of_ngrams(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    ngram: int = 6,
    gap: int = 1,
    count: int | None = None,
    sequence_length: int = 256,
    max_tokens: int | None = None,
    banned: str = BANNED,
) -> TokenTable:
    """Sequences of a corpus in which an n-gram comes again by itself.

    The corpus is cut as :func:`confreg.tokens.cut` does, document by document. Of each sequence the
    first n-gram that comes again is taken, and the sequence ends with the token after it, which
    is the one that followed the n-gram before (``matched``) or not.

    Parameters
    ----------
    corpus, tokenizer, count, max_tokens
        As of :func:`of_text`.
    ngram
        Tokens in an n-gram, at least 2.
    gap
        Tokens between the two occurrences, at least.
    sequence_length
        Tokens in which an n-gram must come again, BOS included.
    banned
        What an n-gram may not have, separated by commas: a token twice (``repeated``), a special
        one (``special``), one without a letter or digit (``wordless``), a line break
        (``newline``) or a part of a character (``piece``), which are wordless; or ``nothing``.

    Raises
    ------
    ConfregError
        The numbers make no sense, or no n-gram comes again.
    """
    _check(count, ngram=(ngram, 2), gap=(gap, 0))
    if sequence_length < 2 * ngram + gap + 2:
        raise ConfregError(
            f"sequence_length is {sequence_length}: two n-grams of {ngram} tokens, a gap of {gap}, "
            f"BOS and the token after need {2 * ngram + gap + 2}."
        )
    cut = tables.cut_sequences(corpus, tokenizer, sequence_length, per_document=True)
    windows = (each.ids.tolist() for each in cut)
    usable = _Usable(tokenizer, _banned(banned))
    found = (_natural(ids, usable, ngram, gap) for ids in windows)
    taken = _take((piece for piece in found if piece), count, max_tokens)
    if not taken:
        raise ConfregError(
            f"No n-gram of {ngram} tokens comes again in the corpus ({corpus.name}) within "
            f"{sequence_length} tokens: give more text, or a smaller ngram."
        )
    said = f"{corpus.name}: n-grams of {ngram} tokens that come again"
    return _table(taken, tokenizer, said, to_end=True)


def of_kind(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    max_tokens: int | None,
    seed: int,
    *,
    repeats: str = "text",
    length: int = 100,
    separator: str = "",
    ngram: int = 6,
    gap: int = 1,
    count: int | None = None,
    banned: str = BANNED,
    rows: int | None = None,
) -> TokenTable:
    """The table that a recipe's parameters ask for.

    Parameters
    ----------
    corpus, tokenizer, sequence_length, max_tokens, seed
        As of the functions above.
    repeats
        ``"text"``, ``"random"`` or ``"ngrams"``.
    length, separator, ngram, gap, count, banned, rows
        Of one or the other.

    Raises
    ------
    ConfregError
        As of those functions, or a sequence is longer than ``sequence_length``.
    """
    if repeats == "ngrams":
        return of_ngrams(corpus, tokenizer, ngram, gap, count, sequence_length, max_tokens, banned)
    size = _size(tokenizer, length, _between(tokenizer, separator))
    if size > sequence_length:
        raise ConfregError(
            f"{length} tokens and their repeat make sequences of {size}: raise --sequence-length "
            f"from {sequence_length}, or lower length."
        )
    if repeats == "random":
        return of_random_tokens(tokenizer, length, count, separator, max_tokens, seed, rows)
    return of_text(corpus, tokenizer, length, count, separator, max_tokens)


def _check(count: int | None, **numbers: tuple[int, int]) -> None:
    least = dict(numbers) if count is None else {**numbers, "count": (count, 1)}
    for name, (value, low) in least.items():
        if value < low:
            raise ConfregError(f"{name} is {value}: it must be at least {low}.")


def _between(tokenizer: PreTrainedTokenizerBase, separator: str) -> list[int]:
    return list(tokenizer(separator, add_special_tokens=False)["input_ids"]) if separator else []


def _size(tokenizer: PreTrainedTokenizerBase, length: int, between: list[int]) -> int:
    return len(special_ids(tokenizer.bos_token_id)) + 2 * length + len(between)


def _doubled(
    pieces: Iterator[list[int]], tokenizer: PreTrainedTokenizerBase, length: int, between: list[int]
) -> Iterator[_Piece]:
    _check(None, length=(length, 4))
    bos = special_ids(tokenizer.bos_token_id)
    starts = (len(bos), len(bos) + length + len(between))
    for ids in pieces:
        yield _Piece([*bos, *ids, *between, *ids], starts, length)


def _take(
    pieces: Iterator[_Piece], count: int | None, max_tokens: int | None, size: int = 0
) -> list[_Piece]:
    """Take whole sequences up to ``max_tokens``; ``size`` is what each needs, where all are alike.

    Raises
    ------
    ConfregError
        ``count`` sequences, or one, do not fit, or there are fewer.
    """
    _check(count)
    wanted = size * (count or 1)
    if max_tokens is not None and wanted > max_tokens:
        raise ConfregError(
            f"{count or 1} sequence{'s' if (count or 1) > 1 else ''} of {size} tokens "
            f"need{'' if (count or 1) > 1 else 's'} max_tokens={wanted}, not {max_tokens}."
        )
    taken: list[_Piece] = []
    left = max_tokens
    while count is None or len(taken) < count:
        if left is not None and left < size:
            break
        piece = next(pieces, None)
        if piece is None or (left is not None and len(piece.ids) > left):
            break
        taken.append(piece)
        left = None if left is None else left - len(piece.ids)
    if taken and count is not None and len(taken) < count:
        raise ConfregError(
            f"There are {len(taken)} sequences, not count={count}: give more text, raise "
            "max_tokens, or lower count."
        )
    return taken


def _banned(spec: str) -> set[str]:
    """What an n-gram may not have.

    Raises
    ------
    ConfregError
        A word that means nothing here.
    """
    kinds = {part.strip() for part in spec.split(",")} - {"", "nothing"}
    for kind in sorted(kinds.difference(_MAY_BE_BANNED)):
        raise ConfregError(
            f"banned={kind!r} is not understood. Write {', '.join(_MAY_BE_BANNED)}, several "
            "separated by commas, or nothing."
        )
    return kinds


class _Usable:
    """Which n-grams count; the tokenizer is asked once a token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, banned: set[str]) -> None:
        self._tokenizer, self._banned = tokenizer, banned
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[int, set[str]] = {}

    def __call__(self, ids: tuple[int, ...]) -> bool:
        """Whether an n-gram has nothing that is banned."""
        if "repeated" in self._banned and len(set(ids)) < len(ids):
            return False
        if "special" in self._banned and self._special.intersection(ids):
            return False
        return not any(self._banned & self._kinds(token) for token in ids)

    def _kinds(self, token: int) -> set[str]:
        if token not in self._known:
            text = piece_texts(self._tokenizer, [token])[0]
            # A part of a character, as bytes are, is written \x..: no letter of a text.
            piece = "\\x" in text
            wordless = piece or not any(c.isalnum() for c in text)
            found = {"wordless": wordless, "piece": piece, "newline": text == "\n"}
            self._known[token] = {kind for kind, is_it in found.items() if is_it}
        return self._known[token]


def _natural(ids: list[int], usable: _Usable, ngram: int, gap: int) -> _Piece | None:
    """The first n-gram that comes again, with the sequence up to the token after it."""
    first: dict[tuple[int, ...], int] = {}
    second: set[tuple[int, ...]] = set()
    for start in range(len(ids) - ngram):  # the token after it is needed
        here = tuple(ids[start : start + ngram])
        before = first.setdefault(here, start)
        if before == start or here in second:
            continue
        second.add(here)
        # The first positions of a sequence are not compared, so no n-gram begins there.
        near = before < tables.FIRST_KEPT_POSITION or start - before < ngram + gap
        if near or not usable(here):
            continue
        stop = start + ngram
        matched = ids[before + ngram] == ids[stop]
        return _Piece(ids[: stop + 1], (before, start), ngram, matched)
    return None


def _table(
    pieces: list[_Piece],
    tokenizer: PreTrainedTokenizerBase,
    corpus: str,
    to_end: bool = False,
) -> TokenTable:
    """Label sequences; ``to_end``: what follows an occurrence's last token is part of it."""
    longest = max(len(piece.ids) for piece in pieces)
    ids = [np.asarray(piece.ids, dtype=np.int64) for piece in pieces]
    table = tables.label(ids, tokenizer, corpus, longest)
    occurrence = np.full(len(table), -1)
    aligned = np.full(len(table), -1)
    matched = np.zeros(len(table), dtype=bool)
    offset = 0
    for piece in pieces:
        for number, start in enumerate(piece.starts):
            at = slice(offset + start, offset + start + piece.length)
            occurrence[at], aligned[at] = number, np.arange(piece.length)
            matched[at] = piece.matched
        offset += len(piece.ids)
    compared = table.keep & (occurrence >= 0)
    if not to_end:
        compared &= aligned < pieces[0].length - 1
    marks = {
        "occurrence": occurrence,
        "aligned": aligned,
        "matched": matched,
        "compared": compared,
    }
    keep = compared & (occurrence == 1)
    return replace(table, keep=keep, marks=marks, wanted=occurrence >= 0)
