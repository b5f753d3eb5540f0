"""Text that is hard to write down: what a dataset holds of it is what the tokenizer was given."""

import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from confreg import tokens

TEXTS = {
    "right to left": "שלום עולם, مرحبا بالعالم.",
    "marks of direction": "a\u202eb\u202cc\u200f d",
    "combining": "e\u0301 a\u030a\u0323 ŵ\u0302 नि",
    "not composed and composed": "é e\u0301",
    "emoji": "👩‍👩‍👧‍👦 🇫🇷 👍🏽 ☺️",
    "beyond the first plane": "𝔘𝔫𝔦 𓀀 \U0010fffd",
    "zero width": "a\u200bb\ufeffc\u2060d",
    "separators": "a\u2028b\u2029c\x0bd\x0ce",
    "NUL and controls": "a\x00b\x01c\x1bd\x7fe\x85f",
    "tabs and newlines": "a\tb\n\nc  d ",
    "backslashes": r"C:\x00 \xc3 \\n \u0041",
}


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level one, like those of most models; its vocabulary is the 256 bytes and BOS."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>"]
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


def spelled(texts):
    """The bytes that token texts stand for: what is no character by itself is written \\xNN."""
    found = b""
    for text in texts:
        hexed = re.fullmatch(r"\\x([0-9a-f]{2})", text)
        found += bytes([int(hexed[1], 16)]) if hexed else text.encode()
    return found


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["list", "txt", "text", "prompt"])
def test_it_comes_back_from_every_kind_of_document(tokenizer, tmp_path, name, kind):
    text = TEXTS[name]
    source = [text]
    if kind == "txt":
        source = tmp_path / "a.txt"
        source.write_text(text, encoding="utf-8", newline="")
    elif kind == "text":
        source = tmp_path / "a.jsonl"
        source.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    elif kind == "prompt":
        source = [{"prompt": "x" + text, "target": text}]
    table = tokens.lay_out(tokens.read(source), tokenizer, 512)
    body = spelled(table.text[1:])
    expected = text if kind != "prompt" else "x" + text + text
    assert tokenizer.decode(table.token_id[1:]) == expected
    assert body == expected.encode()
    for piece in table.text:
        assert "\x00" not in piece, "netCDF strings end there"


def test_one_line_of_megabytes_is_cut_like_any_text(tokenizer, tmp_path):
    line = "é1234567 " * 300_000
    path = tmp_path / "long.txt"
    path.write_text(line, encoding="utf-8")
    table = tokens.lay_out(tokens.read(path), tokenizer, 128, 100_000)
    assert len(table) == 100_000
    body = b"".join(spelled(table.text[table.sequence == s][1:]) for s in range(20))
    assert body == line.encode()[: len(body)]


def test_a_line_of_jsonl_may_be_as_long(tokenizer, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"text": "ab👍 " * 400_000}) + "\n")
    table = tokens.lay_out(tokens.read(path), tokenizer, 256, 4096)
    assert len(table) == 4096


def test_labels_and_columns_keep_such_text(tokenizer, tmp_path):
    import numpy as np
    import xarray as xr

    rows = [{"prompt": "abc" + t, "target": "x", "kind": n, "raw": t} for n, t in TEXTS.items()]
    table = tokens.lay_out(tokens.read(rows), tokenizer, 512, columns=["kind", "raw"])
    first = [int(np.flatnonzero(table.sequence == i)[0]) for i in range(len(rows))]
    assert [table.marks["raw"][i] for i in first] == list(TEXTS.values())
    ds = xr.Dataset(coords={"raw": ("token", table.marks["raw"]), "text": ("token", table.text)})
    ds.to_zarr(tmp_path / "o.zarr", zarr_format=3, consolidated=False)
    again = xr.open_zarr(tmp_path / "o.zarr", consolidated=False)
    assert again["raw"].values.tolist() == table.marks["raw"].tolist()
    assert again["text"].values.tolist() == table.text.tolist()
