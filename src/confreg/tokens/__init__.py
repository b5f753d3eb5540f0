"""Text turned into labelled token sequences.

``read`` says which text, ``cut`` makes the sequences::

    table = tokens.cut(tokens.read(["One document.", "Another."]), tokenizer)
"""

from confreg.tokens import counts, repeats
from confreg.tokens.sources import Corpus, read, read_sources
from confreg.tokens.table import TokenTable, cut

__all__ = ["Corpus", "TokenTable", "counts", "cut", "read", "read_sources", "repeats"]
