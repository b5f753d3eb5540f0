"""Text turned into labelled token sequences.

``read`` says which text, ``cut`` makes the sequences::

    table = tokens.cut(tokens.read(["One document.", "Another."]), tokenizer)

``lay_out`` takes prompts and chats too, see `confreg.tokens.documents`.
"""

from confreg.tokens import counts, repeats
from confreg.tokens.laying import lay_out
from confreg.tokens.sources import Corpus, read, read_sources
from confreg.tokens.table import Answer, TokenTable, cut

__all__ = [
    "Answer",
    "Corpus",
    "TokenTable",
    "counts",
    "cut",
    "lay_out",
    "read",
    "read_sources",
    "repeats",
]
