"""Cutting text into labelled sequences, with real tokenizers built in memory."""

import logging
from itertools import chain

import numpy as np
import pytest
import xarray as xr
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from confreg import tokens
from confreg.errors import ConfregError
from confreg.tokens import table as table_module
from confreg.tokens.pieces import piece_texts

TEXT = "the cat sat on the mat\nand the dog sat on the cat " * 20


def byte_level(bos="<s>", eos="</s>"):
    """Train a byte-level BPE whose template, if used, would add BOS and EOS once more."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    core.add_tokens(["<&added>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, model_max_length=4
    )


def sentencepiece():
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5, "b": 6}
    vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
    core = Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def cut(documents, tokenizer, *args, **options):
    return tokens.cut(tokens.read(documents), tokenizer, *args, **options)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_sequences_hold_bos_and_the_joined_documents(tokenizer):
    table = cut([TEXT, "a dog", "b"], tokenizer, 16)
    assert all(len(ids) == 16 for ids in table.sequences[:-1])
    assert 2 <= len(table.sequences[-1]) <= 16
    assert all(ids[0] == 0 for ids in table.sequences)
    stream = np.concatenate([ids[1:] for ids in table.sequences]).tolist()
    first, second, third = (ids_of(tokenizer, text) for text in (TEXT, "a dog", "b"))
    assert stream == [*first, 1, *second, 1, *third]


def test_labels_line_up_with_the_sequences(tokenizer):
    table = cut([TEXT], tokenizer, 16)
    assert len(table) == sum(map(len, table.sequences))
    for index, ids in enumerate(table.sequences):
        here = table.sequence == index
        assert table.token_id[here].tolist() == ids.tolist()
        assert table.position[here].tolist() == list(range(len(ids)))
        assert table.next_token_id[here].tolist() == [*ids[1:], -1]
    assert "".join(table.text[table.position > 0]) == TEXT
    assert {array.dtype for array in (table.sequence, table.position, table.token_id)} == {
        np.dtype("int64")
    }


def test_keep_leaves_out_first_last_and_special(tokenizer):
    table = cut(["dog", "cat sat on the mat", "the cat sat"], tokenizer, 12)
    keep = [
        position >= 3 and ids[position] > 1 and position + 1 < len(ids) and ids[position + 1] > 1
        for ids in table.sequences
        for position in range(len(ids))
    ]
    assert table.keep.tolist() == keep
    assert 1 in table.token_id[table.position >= 3]
    assert 0 < table.keep.sum() < len(table) - 4 * len(table.sequences)


def test_per_document_starts_anew(tokenizer):
    documents = ["the cat", "", "the dog sat on the mat"]
    table = cut(documents, tokenizer, 5, per_document=True)
    assert 1 not in table.token_id
    first, *rest = [ids[1:].tolist() for ids in table.sequences]
    assert first == ids_of(tokenizer, documents[0])
    assert list(chain(*rest)) == ids_of(tokenizer, documents[2])
    assert all(ids[0] == 0 for ids in table.sequences)


def test_empty_documents_are_not_joined(tokenizer):
    assert cut(["", "the cat", "", "the dog"], tokenizer).token_id.tolist().count(1) == 1


@pytest.mark.parametrize("max_tokens", [3, 15, 16, 17, 18, 40])
def test_max_tokens(tokenizer, max_tokens):
    whole, table = cut([TEXT], tokenizer, 16), cut([TEXT], tokenizer, 16, max_tokens)
    assert len(table) == max_tokens - (max_tokens % 16 == 1)  # no sequence of BOS alone
    assert table.token_id.tolist() == whole.token_id[: len(table)].tolist()
    assert table.next_token_id[-1] == -1
    assert not table.keep[-1]


def test_corpus_is_read_no_further_than_needed(tokenizer):
    read = []

    def documents():
        for number in range(100):
            read.append(number)
            yield TEXT

    corpus = tokens.Corpus("endless", documents)
    assert len(tokens.cut(corpus, tokenizer, 16, max_tokens=64)) == 64
    assert read == [0]


def test_long_documents_are_tokenised_in_parts(tokenizer, monkeypatch):
    whole = cut([TEXT], tokenizer, 16)
    monkeypatch.setattr(table_module, "PIECE_LENGTH", 60)
    parts = list(table_module._parts(TEXT))
    assert len(parts) > 10
    assert all(part.endswith("\n") for part in parts[:-1])
    assert "".join(parts) == TEXT
    table = cut([TEXT], tokenizer, 16)
    assert table.token_id.tolist() == whole.token_id.tolist()
    assert "".join(table_module._parts("x" * 150)) == "x" * 150


@pytest.mark.parametrize(("documents", "count"), [([""], "0 tokens"), (["a"], "1 token:")])
def test_too_little_text(tokenizer, documents, count):
    with pytest.raises(ConfregError, match=f"yields {count}"):
        cut(documents, tokenizer)


@pytest.mark.parametrize(
    ("options", "name"), [({"sequence_length": 1}, "sequence_length"), ({"max_tokens": 2}, "max_")]
)
def test_senseless_lengths(tokenizer, options, name):
    with pytest.raises(ConfregError, match=name):
        cut([TEXT], tokenizer, **options)


def test_tokenizer_without_bos_and_eos():
    plain = byte_level(bos=None, eos=None)
    table = cut(["the cat", "the dog"], plain, 4)
    assert table.token_id.tolist() == ids_of(plain, "the cat") + ids_of(plain, "the dog")


def test_bos_equal_to_eos():
    table = cut(["the cat", "the dog"], byte_level(bos="</s>", eos="</s>"), 64)
    assert (table.token_id == 1).tolist().count(True) == 2
    assert table.token_id[0] == 1


def test_hash_tells_ids_and_cut_apart(tokenizer):
    def digest(documents, *args, **options):
        return cut(documents, tokenizer, *args, **options).corpus_hash

    one = digest([TEXT], 16)
    assert len(one) == 64
    assert one == digest([TEXT], 16)
    assert len({one, digest([TEXT], 17), digest([TEXT + "!"], 16), digest([TEXT], 16, 99)}) == 4


def test_no_warning_about_long_sequences(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        cut([TEXT], byte_level())
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_byte_level_pieces_read_as_text(tokenizer):
    ids = ids_of(tokenizer, " the\ncat\x00é€<&added>")
    texts = piece_texts(tokenizer, [0, *ids])
    assert texts[:2] == ["<s>", " the"]
    assert texts[-1] == "<&added>"
    assert "\n" in texts
    assert texts[-7:-1] == [r"\x00", r"\xc3", r"\xa9", r"\xe2", r"\x82", r"\xac"]


def test_sentencepiece_pieces_read_as_text():
    tokenizer = sentencepiece()
    ids = ids_of(tokenizer, "b a\né")
    assert piece_texts(tokenizer, ids) == ["b", " a", "\n", r"\xc3", r"\xa9"]


@pytest.mark.parametrize("store", ["zarr", "netcdf"])
def test_every_byte_survives_storage(tmp_path, tokenizer, store):
    everything = "".join(map(chr, range(0x180))) + '<a href="x">&amp;</a> \r\n\t  €\U0001f600'
    text = cut([everything], tokenizer, 64).text
    dataset = xr.Dataset(coords={"token_text": ("token", text)})
    path = tmp_path / "store"
    if store == "zarr":
        dataset.to_zarr(path, zarr_format=3, consolidated=False)
        again = xr.open_zarr(path, consolidated=False)
    else:
        pytest.importorskip("netCDF4")
        dataset.to_netcdf(path, engine="netcdf4")
        again = xr.open_dataset(path, engine="netcdf4")
    assert again["token_text"].values.tolist() == text.tolist()
