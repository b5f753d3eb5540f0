"""Sequences in which a text comes again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import zoo

from confreg import tokens
from confreg.errors import ConfregError
from confreg.tokens import repeats
from confreg.tokens.axis import text_axis


@pytest.fixture(scope="module")
def tokenizer():
    return zoo.tokenizer()


def text(*ids):
    return " ".join(f"w{i}" for i in ids)


def corpus(*documents):
    return tokens.read([text(*ids) for ids in documents])


def by_sequence(table):
    return [np.flatnonzero(table.sequence == s) for s in range(len(table.sequences))]


def check(table, length):
    """What holds of every table of repeats, which are returned."""
    found = SimpleNamespace(**table.marks)
    found.first = text_axis(table).over("first")
    np.testing.assert_array_equal(np.concatenate(table.sequences), table.token_id)
    np.testing.assert_array_equal(table.keep, found.compared & (found.occurrence == 1))
    np.testing.assert_array_equal(found.occurrence < 0, found.aligned < 0)
    assert not found.matched[found.occurrence < 0].any()
    assert not (found.compared & ((table.position < 3) | (table.next_token_id < 0))).any()
    for at in by_sequence(table):
        first, second = (at[found.occurrence[at] == number] for number in (0, 1))
        np.testing.assert_array_equal(found.aligned[first], np.arange(length))
        np.testing.assert_array_equal(found.aligned[second], np.arange(length))
        np.testing.assert_array_equal(table.token_id[first], table.token_id[second])
        assert len(set(found.matched[[*first, *second]])) == 1
    return found


def test_pieces_of_a_corpus_come_again(tokenizer):
    long, short = list(range(10, 22)), list(range(30, 34))
    table = repeats.of_text(corpus(long, short, range(40, 45)), tokenizer, 5, separator="w90 w91")
    found = check(table, 5)
    expected = [[0, *piece, 90, 91, *piece] for piece in (long[:5], long[5:10], range(40, 45))]
    assert [s.tolist() for s in table.sequences] == expected
    first = by_sequence(table)[0]
    # Not the first positions, and not where an occurrence is left.
    assert table.position[first][found.first[first]].tolist() == [3, 4]
    assert table.position[first][table.keep[first]].tolist() == [8, 9, 10, 11]
    assert found.matched.sum() == 3 * 10
    assert found.occurrence[first].tolist() == [-1, *[0] * 5, -1, -1, *[1] * 5]


@pytest.mark.parametrize(("options", "rows"), [({"count": 2}, 2), ({"max_tokens": 24}, 2), ({}, 4)])
def test_as_many_as_asked_for(tokenizer, options, rows):
    table = repeats.of_text(corpus(range(10, 30)), tokenizer, 5, **options)
    assert len(table.sequences) == rows
    assert {len(s) for s in table.sequences} == {11}


def test_random_tokens_come_again(tokenizer):
    table = repeats.of_random_tokens(tokenizer, 20, 6, seed=3)
    check(table, 20)
    for sequence in table.sequences:
        assert sequence[0] == tokenizer.bos_token_id
        assert len(set(sequence[1:21])) == 20
        assert not set(sequence[1:]) & set(tokenizer.all_special_ids)
        for at in range(21, 41):  # what followed the token before
            assert sequence[at - 20] == sequence[at]
    again = repeats.of_random_tokens(tokenizer, 20, 6, seed=3)
    other = repeats.of_random_tokens(tokenizer, 20, 6, seed=4)
    assert again.corpus_hash == table.corpus_hash != other.corpus_hash


def test_an_n_gram_comes_again(tokenizer):
    a = [20, 21, 22]
    table = repeats.of_ngrams(
        corpus(
            [5, 6, 7, *a, 60, 8, *a, 60, 9, 9],  # goes on alike
            [5, 6, 7, *a, 60, 8, *a, 61, 9, 9],  # does not
            [5, 6, 7, *a, *a, 60, 9, *a, 61],  # twice without a gap: not the second any more
            [5, *a, 60, 8, *a, 62, *a, 61],  # begins among the first positions
            [5, 6, 7, 30, 31, 30, 8, 9, 30, 31, 30, 8],  # a token twice in it: left out
            [5, 6, 7, *a, 60, 8, *a],  # nothing follows
        ),
        tokenizer, ngram=3, gap=1,
    )  # fmt: skip
    found = check(table, 3)
    assert [s.tolist() for s in table.sequences] == [
        [0, 5, 6, 7, *a, 60, 8, *a, 60],
        [0, 5, 6, 7, *a, 60, 8, *a, 61],
    ]
    alike, other = by_sequence(table)
    assert found.matched[alike].sum() == 6
    assert not found.matched[other].any()
    # The prediction of what follows is part of it.
    assert table.position[alike][table.keep[alike]].tolist() == [9, 10, 11]
    assert table.position[alike][found.first[alike]].tolist() == [4, 5, 6]


def test_what_is_banned_can_be_told(tokenizer):
    twice = [30, 31, 30]
    text = corpus([5, 6, 7, *twice, 8, 9, *twice, 8])
    with pytest.raises(ConfregError, match="comes again"):
        repeats.of_ngrams(text, tokenizer, ngram=3)
    for banned in ("special,wordless", "special", "nothing", ""):
        table = repeats.of_ngrams(text, tokenizer, ngram=3, banned=banned)
        assert table.sequences[0].tolist() == [0, 5, 6, 7, *twice, 8, 9, *twice, 8]


def test_n_grams_have_no_special_token_and_none_without_a_letter():
    from test_tokens_table import byte_level

    words = byte_level()
    same = "and the cat"
    for between, found in ((" ", True), (" ... ", False)):
        document = f"the dog sat on {same}{between}sat on the mat. {same}{between}sat on a mat"
        ids, inside, dots = (words.encode(t) for t in (document, same, "..."))
        usable = repeats._Usable(words, {"repeated", "special", "wordless"})
        assert usable(inside[1:-1])
        assert not usable(dots[1:-1])
        assert not usable(inside[:1])
        assert repeats._Usable(words, {"special", "newline", "piece"})(dots[1:-1])
        assert repeats._Usable(words, set())(inside[:1])
        assert (repeats._natural(ids[:-1], usable, 4, 1) is not None) == found


def test_line_breaks_and_parts_of_characters_can_be_banned_by_themselves():
    from test_tokens_table import byte_level

    words = byte_level()
    line, letter = words.encode("\n")[1:-1], words.encode("\u0416")[1:-1]
    assert len(line) == 1
    assert len(letter) == 2
    for ids, kind in ((line, "newline"), (letter[:1], "piece")):
        for banned in ({kind}, {"wordless"}):
            assert not repeats._Usable(words, banned)(ids)
        assert repeats._Usable(words, {"newline", "piece"} - {kind})(ids)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: repeats.of_text(corpus(range(10, 14)), t, 5), "no document of 5 tokens"),
        (lambda t: repeats.of_text(corpus(range(10, 20)), t, 3), "length is 3"),
        (lambda t: repeats.of_text(corpus(range(10, 20)), t, 5, count=0), "count is 0"),
        (lambda t: repeats.of_text(corpus(range(10, 20)), t, 5, max_tokens=10), "max_tokens=11"),
        (lambda t: repeats.of_text(corpus(range(10, 20)), t, 5, 2, max_tokens=20), "max_tokens=22"),
        (lambda t: repeats.of_text(corpus(range(10, 20)), t, 5, 3), "are 2 sequences, not count=3"),
        (lambda t: repeats.of_random_tokens(t, 20), "need a count"),
        (lambda t: repeats.of_random_tokens(t, 99, 1), "has 95 tokens: too few to draw 99"),
        (lambda t: repeats.of_ngrams(corpus(range(10, 30)), t), "comes again"),
        (lambda t: repeats.of_ngrams(corpus(range(9)), t, 1), "ngram is 1"),
        (lambda t: repeats.of_ngrams(corpus(range(9)), t, sequence_length=9), "need 15"),
        (lambda t: repeats.of_ngrams(corpus(range(9)), t, banned="words"), "banned='words'"),
    ],
)
def test_bad_requests_are_one_sentence(tokenizer, make, said):
    with pytest.raises(ConfregError, match=said) as caught:
        make(tokenizer)
    assert "\n" not in str(caught.value)
