"""Text of any kind laid out as a table: running text is cut, prompts and chats stay whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from confreg.errors import ConfregError
from confreg.tokens import labels
from confreg.tokens.documents import kind_of
from confreg.tokens.prompts import cut_prompts
from confreg.tokens.sources import Corpus
from confreg.tokens.table import TokenTable, cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USUAL = 1024  # tokens of running text, unless another number is asked for


def lay_out(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int = 256,
    max_tokens: int | Literal["usual"] | None = "usual",
    per_document: bool = False,
    bos: Literal["add", "text"] = "add",
    *,
    columns: Sequence[str] = (),
    keep: Sequence[str] = (),
    template: Mapping[str, Any] | None = None,
    positions: int | None = None,
) -> TokenTable:
    """A corpus as a table of tokens: by `cut`, or by `cut_prompts` if it holds prompts or chats.

    Parameters
    ----------
    corpus, tokenizer, sequence_length, per_document, bos, columns, template
        As of these. ``per_document`` is how prompts are always read.
    max_tokens
        ``"usual"``: 1,024 of running text, all of prompts. None: all.
    keep
        Which tokens are kept, see `confreg.tokens.labels.kept`; none: what is usual.
    positions
        How many the model has; a prompt that is longer is named.

    Raises
    ------
    ConfregError
        As these.
    """
    first = next(iter(corpus.records()), None)
    if first is None:
        raise ConfregError(f"The text ({corpus.name}) holds no document.")
    names = dict.fromkeys(columns)
    if kind_of(first[1]) == "text":
        most = USUAL if max_tokens == "usual" else max_tokens
        table = cut(corpus, tokenizer, sequence_length, most, per_document, bos, list(names))
        if template:
            raise ConfregError(
                "--chat-template-kwargs are for chats, and this text holds no messages."
            )
    else:
        most = None if max_tokens == "usual" else max_tokens
        table = cut_prompts(
            corpus, tokenizer, sequence_length, most, bos,
            columns=list(names), template=template, positions=positions,
        )  # fmt: skip
    return labels.kept(table, keep) if keep else table
