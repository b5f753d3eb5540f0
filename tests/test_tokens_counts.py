"""Token counts: made, cached, stored and read."""

import numpy as np
import pytest
from test_tokens_table import byte_level

from confreg import tokens
from confreg.errors import ConfregError
from confreg.tokens import counts

SIZE = 320  # rows of the unembedding, more than the tokenizer has


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "confreg" / "counts"


def test_counts_are_of_the_texts_own_tokens(tokenizer):
    documents = ["the cat sat", "", "the dog"]
    told = []
    found = counts.count(tokens.read(documents), tokenizer, SIZE, advance=told.append)
    ids = [i for text in documents for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert found.values.tolist() == np.bincount(ids, minlength=SIZE).tolist()
    assert found.total == sum(told) == len(ids)
    assert found.values[:2].sum() == 0  # no BOS, no EOS


def test_counting_stops_where_told(tokenizer):
    read = []

    def documents():
        for number in range(50):
            read.append(number)
            yield "the cat sat on the mat"

    one = counts.count(tokens.read(["the cat sat on the mat"]), tokenizer, SIZE).total
    found = counts.count(tokens.Corpus("endless", documents), tokenizer, SIZE, max_tokens=one + 1)
    assert read == [0, 1]
    assert found.total == 2 * one
    assert "first" in found.source


def test_few_counts_are_warned_of():
    few = counts.Counts(np.eye(1, SIZE, dtype=np.int64)[0], "a text")
    assert "319 never occur" in few.warning
    assert counts.Counts(np.full(SIZE, counts.ENOUGH), "a text").warning == ""


@pytest.mark.parametrize("suffix", counts.SUFFIXES)
def test_file_round_trip(tmp_path, suffix):
    values = np.arange(SIZE)[::-1].copy()
    path = tmp_path / "deep" / f"counts{suffix}"
    counts.Counts(values, "text").save(path)
    again = counts.load(path, SIZE + 5)
    assert again.values.tolist() == [*values.tolist(), 0, 0, 0, 0, 0]
    assert again.source == path.name
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_csv_by_hand(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text("token,count\n3,10\n1,2\n3,5\n")
    assert counts.load(path, 5).values.tolist() == [0, 2, 0, 15, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "0,1\nx,2\n", "Line 2 of"),
        ("a.csv", "9,1\n", "there is no token 9"),
        ("a.csv", "0,0\n", "not all 0"),
        ("a.csv", "0,-3\n", "whole numbers from 0"),
        ("a.npy", np.ones((2, 2)), "of shape"),
        ("a.npy", np.array([0.5, 1.0]), "whole numbers"),
        ("a.npy", np.array(["1"]), "whole numbers"),
        ("a.npy", np.ones(6), "another tokenizer"),
        ("a.npy", "no array", "cannot be read"),
    ],
)
def test_what_is_no_counts_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content) if isinstance(content, str) else np.save(path, content)
    with pytest.raises(ConfregError, match=message):
        counts.load(path, 5)


def test_other_refusals(tmp_path, tokenizer):
    with pytest.raises(ConfregError, match="cannot be read"):
        counts.load(tmp_path / "absent.npy", 5)
    with pytest.raises(ConfregError, match="not to"):
        counts.Counts(np.ones(3, np.int64), "x").save(tmp_path / "counts.txt")
    with pytest.raises(ConfregError, match="yields no token"):
        counts.count(tokens.read([""]), tokenizer, SIZE)
    with pytest.raises(ConfregError, match="the model has 10 rows"):
        counts.count(tokens.read(["the cat"]), tokenizer, 10)


def test_named_text_is_counted_once_while_it_is_unchanged(tmp_path, cache, tokenizer, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat")
    corpus = tokens.read(["unused"])
    first = counts.read(str(text), corpus, tokenizer, SIZE)
    assert len(list(cache.iterdir())) == 1

    def never(*_):
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr(counts, "count", never)
        again = counts.read(str(text), corpus, tokenizer, SIZE)
    assert again.sha256 == first.sha256
    text.write_text("the dog sat on the mat, too")
    assert counts.read(str(text), corpus, tokenizer, SIZE).sha256 != first.sha256


def test_what_a_recipe_may_name(tmp_path, tokenizer):
    corpus = tokens.read(["the cat"])
    own = counts.read(None, corpus, tokenizer, SIZE)
    assert own.total == len(tokenizer("the cat", add_special_tokens=False)["input_ids"])
    own.save(tmp_path / "own.npy")
    assert counts.read(str(tmp_path / "own.npy"), corpus, tokenizer, SIZE).sha256 == own.sha256
