"""Prompts and chats as token sequences: one a document, never joined, with what answers them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from confreg.errors import ConfregError
from confreg.tokens import chats
from confreg.tokens.documents import Prompt, kind_of, prompt_of, same_kind
from confreg.tokens.labels import columns_of, said
from confreg.tokens.sources import Corpus
from confreg.tokens.table import Answer, TokenTable, label, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Sequence:
    """A prompt's tokens.

    ``prompt`` and ``targets`` are token ids, and ``roles`` are of the prompt's tokens, if it is a
    chat.
    """

    said: Prompt
    prompt: list[int]
    roles: list[str]
    targets: tuple[tuple[int, ...], ...]
    contrast: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        """What is read: the prompt, and the first target after it."""
        return [*self.prompt, *(self.targets[0] if self.targets else ())]


def cut_prompts(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int = 256,
    max_tokens: int | None = None,
    bos: Literal["add", "text"] = "add",
    *,
    columns: Sequence[str] = (),
    template: Mapping[str, Any] | None = None,
    positions: int | None = None,
) -> TokenTable:
    """Make a sequence of every prompt or chat, and label its tokens.

    A prompt begins with BOS where the tokenizer has one and the text has not. A chat is what the
    tokenizer's own template makes of it, and nothing is added. The first target is tokenised as it
    would follow, and appended.

    Parameters
    ----------
    corpus
        Of prompts or chats, see `confreg.tokens.documents`.
    tokenizer
        A transformers tokenizer.
    sequence_length
        Of the longest sequence; none is cut.
    max_tokens
        Documents are taken as long as they have at most as many tokens in all; None: all are.
    bos
        ``"text"``: add no BOS to prompts.
    columns
        Fields of the records that become labels of their tokens.
    template
        Further arguments of the chat template.
    positions
        How many the model has.

    Returns
    -------
    TokenTable
        With the marks ``document``, ``target_index``, ``role`` (of chats), ``prompt_id`` (where
        all records have it) and the columns, and
        with an `Answer` a document where any has a target. Then it keeps the last position of
        every prompt, and otherwise what running text keeps.

    Raises
    ------
    ConfregError
        What is wrong with a document, and where it stands.
    """
    taken, found, warning = [], 0, ""
    for each in _sequences(corpus, tokenizer, bos, template or {}):
        length = len(each.ids)
        longest = max(length, len(each.prompt) + len(each.contrast))
        if positions is not None and longest > positions:
            raise ConfregError(
                f"{_capital(each.said.where)} has {longest} tokens, and the model positions for "
                f"{positions}: shorten it."
            )
        if length > sequence_length:
            raise ConfregError(
                f"{_capital(each.said.where)} has {length} tokens, and prompts are not cut: raise "
                f"--sequence-length ({sequence_length}), or shorten it."
            )
        if max_tokens is not None and found + length > max_tokens:
            warning = (
                f"Only the first {len(taken)} documents are read: more have no room in "
                f"--max-tokens {max_tokens}."
            )
            break
        found += length
        taken.append(each)
    if not taken:
        raise ConfregError(
            f"Not even the first document of {corpus.name} has at most {max_tokens} tokens."
            if warning
            else f"The text ({corpus.name}) holds no document."
        )
    return replace(_table(taken, tokenizer, corpus.name, columns), warning=warning)


def _sequences(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    bos: Literal["add", "text"],
    template: Mapping[str, Any],
) -> Iterator[_Sequence]:
    kind = None
    for where, record in corpus.records():
        if kind is None:
            kind = kind_of(record)
        same_kind(where, record, kind)
        said = prompt_of(where, record)
        yield _sequence(said, tokenizer, bos, template)


def _sequence(
    said: Prompt,
    tokenizer: PreTrainedTokenizerBase,
    bos: Literal["add", "text"],
    template: Mapping[str, Any],
) -> _Sequence:
    parts: list[chats.Part] = []
    text = said.text or ""
    if said.text is None:
        text, parts = chats.render(
            tokenizer, said.messages, said.where, bool(said.targets), template
        )
    ids = _ids(tokenizer, text)
    if not ids:
        raise ConfregError(f"{_capital(said.where)} yields no token.")
    roles = _roles(tokenizer, text, parts, said.where) if parts else []
    targets = tuple(
        _continuation(tokenizer, text, ids, each, said.where, "target") for each in said.targets
    )
    contrast = ()
    if said.contrast is not None:
        contrast = _continuation(tokenizer, text, ids, said.contrast, said.where, "contrast")
    first = special_ids(tokenizer.bos_token_id) if bos == "add" and said.text is not None else []
    if first and ids[:1] != first:
        ids = first + ids
    return _Sequence(said, ids, roles, targets, contrast)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _roles(
    tokenizer: PreTrainedTokenizerBase, text: str, parts: list[chats.Part], where: str
) -> list[str]:
    if not tokenizer.is_fast:
        raise ConfregError(
            f"The tokenizer {tokenizer.name_or_path} does not say where in a text its tokens are, "
            f"so the roles of {where} cannot be told: save it as a fast tokenizer."
        )
    given = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return chats.roles(parts, [start for start, _ in given["offset_mapping"]])


def _continuation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    before: list[int],
    text: str,
    where: str,
    what: str,
) -> tuple[int, ...]:
    """Token ids of a text as it follows a prompt's.

    Raises
    ------
    ConfregError
        The prompt's tokens would be others.
    """
    both = _ids(tokenizer, prompt + text)
    if both[: len(before)] != before or len(both) == len(before):
        advice = (
            "take the space off the prompt's end and put it before the " + what
            if prompt[-1:].isspace()
            else f"begin the {what} where a token begins, such as with a space"
        )
        raise ConfregError(
            f"{_capital(where)}: the {what} {text!r} is no continuation of the prompt, whose end "
            f"{prompt[-12:]!r} merges with it into other tokens: {advice}."
        )
    return tuple(both[len(before) :])


def _table(
    taken: list[_Sequence],
    tokenizer: PreTrainedTokenizerBase,
    corpus: str,
    columns: Sequence[str],
) -> TokenTable:
    sequences = [np.asarray(each.ids, dtype=np.int64) for each in taken]
    lengths = [len(ids) for ids in sequences]
    table = label(sequences, tokenizer, corpus, max(lengths))
    begins = [0, *accumulate(lengths)][:-1]
    lasts = [begin + len(each.prompt) - 1 for begin, each in zip(begins, taken)]
    index = np.full(len(table), -1, dtype=np.int64)
    for last, each in zip(lasts, taken):
        count = len(each.targets[0]) if each.targets else 0
        index[last : last + count] = np.arange(count)
    marks = {"document": table.sequence}
    if any(each.roles for each in taken):
        roles = np.empty(len(table), dtype=object)
        roles[:] = [role for each in taken for role in _every_role(each)]
        marks["role"] = roles
    answers: tuple[Answer, ...] = ()
    if any(each.targets for each in taken):
        marks["target_index"] = index
        answers = tuple(
            Answer(last, each.targets, each.contrast) for last, each in zip(lasts, taken)
        )
    known = ["prompt_id"] * all("prompt_id" in each.said.columns for each in taken)
    wanted = dict.fromkeys([*known, *columns])
    placed = [(each.said.where, each.said.columns) for each in taken]
    marks |= columns_of(placed, list(wanted), table.sequence)
    final = np.zeros(len(table), dtype=bool)
    final[lasts] = True
    return replace(
        table,
        marks=marks,
        answers=answers,
        ends=final,
        running=table.keep,
        keep=final if answers else table.keep,
        corpus_hash=_hash(table.corpus_hash, answers, said(marks)),
    )


def _hash(of_tokens: str, answers: Sequence[Answer], labels: bytes) -> str:
    answered = repr([(each.token, each.targets, each.contrast) for each in answers])
    return hashlib.sha256(of_tokens.encode() + answered.encode() + labels).hexdigest()


def _every_role(each: _Sequence) -> list[str]:
    return each.roles + ["assistant"] * (len(each.ids) - len(each.roles))


def _capital(where: str) -> str:
    return where[0].upper() + where[1:]
