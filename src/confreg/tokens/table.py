"""Text cut into labelled token sequences."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from confreg.errors import ConfregError
from confreg.tokens import documents, labels
from confreg.tokens.pieces import piece_texts
from confreg.tokens.records import Placed
from confreg.tokens.sources import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIRST_KEPT_POSITION = 3  # the first positions attend to next to nothing
PIECE_LENGTH = 1_000_000  # characters given to the tokenizer at once


@dataclass(frozen=True)
class Answer:
    """What a document's prompt is answered by.

    Attributes
    ----------
    token
        Which token of the table is the prompt's last: what it predicts is the answer's first.
    targets
        Accepted answers as token ids; none where none is known. The first is read after the
        prompt: its k-th token is the table's token ``token + 1 + k``.
    contrast
        What the first is compared with, as token ids; empty if with nothing.
    """

    token: int
    targets: tuple[tuple[int, ...], ...]
    contrast: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Token sequences and, for every token, its labels. T tokens in all.

    Attributes
    ----------
    sequences
        The sequences fed to the model, each int64 of shape (length,), length at most
        ``sequence_length``; laid end to end they are ``token_id``.
    sequence, position
        Which sequence, and where in it: int64 (T,).
    token_id, next_token_id
        The token and the one that follows it in its sequence, -1 where none does: int64 (T,).
    keep
        Whether reductions count the token, bool (T,): its position is 3 or more, it has a
        next token, and neither of the two is special. Of repeats, tokens of the second
        occurrence only; of prompts, where some have a target, the last position of each only.
    text
        What the token reads as, see :func:`confreg.tokens.pieces.piece_texts`: object (T,).
    corpus, corpus_hash
        The corpus's description; SHA-256 over the token ids and where they were cut.
    tokenizer
        The tokenizer's name, or its folder's if it is a local one.
    sequence_length
        The length to which sequences were cut.
    marks
        Further labels of the tokens, by name: arrays (T,).
    wanted
        Tokens at which effects are wanted, bool (T,); None: at all.
    warning
        What a reader of the numbers should know of the text; empty if nothing.
    answers
        Of documents that are prompts, some with targets, one a document, in order.
    ends
        Of prompts, which tokens are a prompt's last, bool (T,).
    running
        Of prompts, what would be kept of running text, bool (T,).
    """

    sequences: list[np.ndarray]
    sequence: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    next_token_id: np.ndarray
    keep: np.ndarray
    text: np.ndarray
    corpus: str
    corpus_hash: str
    tokenizer: str
    sequence_length: int
    marks: Mapping[str, np.ndarray] = field(default_factory=dict)
    wanted: np.ndarray | None = None
    warning: str = ""
    answers: tuple[Answer, ...] = ()
    ends: np.ndarray | None = None
    running: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of tokens, T."""
        return len(self.token_id)


def cut(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int = 256,
    max_tokens: int | None = None,
    per_document: bool = False,
    bos: Literal["add", "text"] = "add",
    columns: Sequence[str] = (),
) -> TokenTable:
    """Cut a corpus into sequences of one length and label every token.

    Every sequence begins with BOS where the tokenizer has one: with the text's own where the text
    has it there, else with one that is added. Documents are joined by EOS,
    where the tokenizer has one, and run on across sequences; with ``per_document`` each
    document begins a sequence instead. A last partial sequence is kept. The corpus is read
    no further than needed.

    Parameters
    ----------
    corpus
        From :func:`confreg.tokens.read`.
    tokenizer
        A transformers tokenizer. Its own template of special tokens is not used.
    sequence_length
        Tokens in a sequence, BOS included; at least 2.
    max_tokens
        At most as many tokens in the table, at least 3; None: all.
    per_document
        Cut every document anew.
    bos
        ``"text"``: add no BOS.
    columns
        Fields of the records that become labels of their tokens, beside ``document``. What is
        added, BOS and EOS, is of the document that it stands before.

    Raises
    ------
    ConfregError
        If a record lacks a column, the lengths make no sense, or the corpus yields fewer than 2
        tokens.
    """
    if sequence_length < 2:
        raise ConfregError(
            f"sequence_length is {sequence_length}: it must be at least 2, since a token "
            "is predicted from the one before it."
        )
    if max_tokens is not None and max_tokens < 3:
        raise ConfregError(f"max_tokens is {max_tokens}: it must be at least 3, BOS and a pair.")
    own = special_ids(tokenizer.bos_token_id)
    n_bos = len(own) if bos == "add" else 0
    placed: list[Placed] = []
    stream = cut_sequences(
        corpus, tokenizer, sequence_length, per_document, bos, placed if columns else None
    )
    taken = _take(stream, max_tokens, shortest=1 + n_bos)
    sequences = [each.ids for each in taken]
    added = sum(1 for each in taken if each.added)
    text_tokens = sum(map(len, sequences)) - added
    if text_tokens < 2:
        raise ConfregError(
            f"The corpus ({corpus.name}) yields {text_tokens} token"
            f"{'' if text_tokens == 1 else 's'}: at least 2 are needed to predict one."
        )
    table = label(sequences, tokenizer, corpus.name, sequence_length)
    if columns:
        document = np.concatenate([each.documents for each in taken])
        marks = {"document": document, **labels.columns_of(placed, columns, document)}
        digest = hashlib.sha256(table.corpus_hash.encode() + labels.said(marks)).hexdigest()
        table = replace(table, marks=marks, corpus_hash=digest)
    there = int(np.isin(table.token_id, own).sum()) - added
    if not there or bos == "text":
        return table
    return replace(
        table,
        warning=f"The text itself holds {tokenizer.bos_token}, which begins a sequence, "
        f"{there:,} time{'s' if there > 1 else ''}. None was added where a sequence begins with it "
        "already; --bos text adds none at all.",
    )


def encode(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, placed: list[Placed] | None = None
) -> Iterator[tuple[bool, list[int]]]:
    """Tokenise a corpus without special tokens, as pairs (begins a document, token ids).

    A document of more than a million characters comes in parts that end where a line does,
    so that memory stays bounded. Empty documents are skipped. To ``placed`` the records of the
    others are added, before their first tokens come.
    """
    kind = None
    for each in corpus.records():
        kind = documents.kind_of(each[1]) if kind is None else kind
        documents.same_kind(*each, kind)
        begins = True
        for part in _parts(documents.plain(*each)):
            # verbose=False: "sequence longer than the maximum" is no news, we cut it.
            ids = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            if ids:
                if begins and placed is not None:
                    where, record = each
                    placed.append((where, {k: v for k, v in record.items() if k != "text"}))
                yield begins, ids
                begins = False


def _parts(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > PIECE_LENGTH:
        newline = document.rfind("\n", start, start + PIECE_LENGTH)
        end = newline + 1 if newline >= start else start + PIECE_LENGTH
        yield document[start:end]
        start = end
    yield document[start:]


def special_ids(token_id: Any) -> list[int]:
    """Return a special token as a list, empty where the tokenizer has none."""
    return [] if token_id is None else [token_id]


class Cut(NamedTuple):
    """A sequence that was cut: token ids, whether its BOS was added, and its tokens' documents."""

    ids: np.ndarray
    added: bool
    documents: np.ndarray


def cut_sequences(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    per_document: bool,
    bos: Literal["add", "text"] = "add",
    placed: list[Placed] | None = None,
) -> Iterator[Cut]:
    """Cut a corpus into sequences of ``length`` tokens, as :func:`cut` does, one by one.

    Documents are counted from 0, empty ones left out; their records are added to ``placed``.
    """
    first = special_ids(tokenizer.bos_token_id) if bos == "add" else []
    separator = [] if per_document else special_ids(tokenizer.eos_token_id)
    room = length - len(first)

    def begun(ids: list[int], owners: list[int]) -> Cut:
        added = bool(first) and ids[:1] != first
        if added:
            ids, owners = first + ids, owners[:1] * len(first) + owners
        return Cut(np.asarray(ids, dtype=np.int64), added, np.asarray(owners, dtype=np.int64))

    held: list[int] = []
    owners: list[int] = []
    document = -1
    for begins, ids in encode(corpus, tokenizer, placed):
        document += begins
        if begins and document:
            if per_document and held:
                yield begun(held, owners)
                held, owners = [], []
            held += separator
            owners += [document] * len(separator)
        held += ids
        owners += [document] * len(ids)
        full = len(held) - len(held) % room
        for start in range(0, full, room):
            yield begun(held[start : start + room], owners[start : start + room])
        held, owners = held[full:], owners[full:]
    if held:
        yield begun(held, owners)


def _take(sequences: Iterator[Cut], max_tokens: int | None, shortest: int) -> list[Cut]:
    """Collect sequences up to ``max_tokens`` tokens, and ask for none that would not fit.

    None shorter than ``shortest`` is taken: a lone BOS says nothing.
    """
    taken: list[Cut] = []
    left = max_tokens
    while left is None or left >= shortest:
        each = next(sequences, None)
        if each is None:
            break
        taken.append(each._replace(ids=each.ids[:left], documents=each.documents[:left]))
        if left is not None:
            left -= len(taken[-1].ids)
    return taken


def label(
    sequences: list[np.ndarray], tokenizer: PreTrainedTokenizerBase, corpus: str, length: int
) -> TokenTable:
    """Label the tokens of sequences of at most ``length`` tokens each."""
    lengths = np.array([len(ids) for ids in sequences])
    token_id = np.concatenate(sequences)
    position = np.concatenate([np.arange(count) for count in lengths])
    next_token_id = np.append(token_id[1:], -1)
    next_token_id[np.cumsum(lengths) - 1] = -1
    special = np.array(tokenizer.all_special_ids, dtype=np.int64)
    keep = (
        (position >= FIRST_KEPT_POSITION)
        & (next_token_id >= 0)
        & ~np.isin(token_id, special)
        & ~np.isin(next_token_id, special)
    )
    return TokenTable(
        sequences=sequences,
        sequence=np.repeat(np.arange(len(sequences)), lengths),
        position=position,
        token_id=token_id,
        next_token_id=next_token_id,
        keep=keep,
        text=_texts(tokenizer, token_id),
        corpus=corpus,
        corpus_hash=_hash(token_id, lengths),
        tokenizer=_name(tokenizer),
        sequence_length=length,
    )


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a name that says nothing of this machine's folders, since results travel."""
    name = str(tokenizer.name_or_path or type(tokenizer).__name__)
    return Path(name).name if Path(name).is_absolute() else name


def _texts(tokenizer: PreTrainedTokenizerBase, token_id: np.ndarray) -> np.ndarray:
    used, where = np.unique(token_id, return_inverse=True)
    texts = np.empty(len(used), dtype=object)
    texts[:] = piece_texts(tokenizer, used.tolist())
    return texts[where]


def _hash(token_id: np.ndarray, lengths: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (lengths, token_id):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()
