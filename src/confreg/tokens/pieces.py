"""What a token reads as: vocabulary pieces turned back into text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\u2581"  # what sentencepiece writes for a space


def piece_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    r"""Return what each token reads as on its own.

    A space is a space and a newline a newline. Bytes that are no complete UTF-8 character
    by themselves, and control characters other than tab, newline and carriage return, are
    written ``\xNN`` (netCDF strings end at a NUL). Special and other added tokens read as
    they are spelled.
    """
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    kind = _kind(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    texts = []
    for index, piece in zip(ids, pieces, strict=True):
        if index in added:
            text = added[index]
        elif kind == "bytes":
            text = _from_bytes(piece)
        elif kind == "sentencepiece":
            text = _from_sentencepiece(piece)
        else:
            text = str(tokenizer.decode([index], clean_up_tokenization_spaces=False))
        texts.append(_printable(text))
    return texts


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """Tell from its decoder how a tokenizer spells bytes: bytes, sentencepiece or other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return "sentencepiece" if _SPACE in tokenizer.get_vocab() else "other"
    names = set(_strings(json.loads(backend.decoder.__getstate__())))
    if "ByteLevel" in names:
        return "bytes"
    if names & {"Metaspace", "ByteFallback", _SPACE}:
        return "sentencepiece"
    return "other"


def _strings(node: object) -> Iterable[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)


def _from_bytes(piece: str) -> str:
    table = _byte_of_character()
    if any(character not in table for character in piece):
        return piece
    return bytes(table[character] for character in piece).decode("utf-8", "backslashreplace")


def _from_sentencepiece(piece: str) -> str:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)]).decode("utf-8", "backslashreplace")
    return piece.replace(_SPACE, " ")


@cache
def _byte_of_character() -> dict[str, int]:
    """Invert GPT-2's spelling of bytes: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    table = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + rank): byte for rank, byte in enumerate(rest)}


def _printable(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    code = ord(character)
    if character in "\t\n\r" or not (code < 32 or 127 <= code < 160):
        return character
    return f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}"
