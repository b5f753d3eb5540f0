"""Prompts with answers and chats as sequences, against the tokenizer itself."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_tokens_table import byte_level

from confreg import tokens
from confreg.errors import ConfregError
from confreg.options import Options

TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '[system] the dog\n' }}{% endif %}"
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}"
    "{% if quiet is defined %}{{ quiet }}{% endif %}{% endif %}"
)
CHAT = [
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on the mat"},
    {"role": "user", "content": "and the dog"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


@pytest.fixture(scope="module")
def chatty():
    found = byte_level()
    found.chat_template = TEMPLATE
    return found


def laid(items, tokenizer, *args, **options):
    return tokens.lay_out(tokens.read(items), tokenizer, *args, **options)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


QUESTIONS = [
    {"prompt": "the cat sat on", "target": [" the mat", " the dog"], "contrast": " a cat",
     "category": "cats", "year": 1990, "prompt_id": "c1"},
    {"prompt": "and the dog sat", "target": " on the cat and the mat", "category": "dogs",
     "year": 2000, "prompt_id": "d1"},
]  # fmt: skip


def test_prompts_are_read_each_by_itself_with_the_first_target_behind_them(tokenizer):
    table = laid(QUESTIONS, tokenizer)
    read = ["the cat sat on the mat", "and the dog sat on the cat and the mat"]
    assert [each.tolist() for each in table.sequences] == [[0, *ids(tokenizer, t)] for t in read]
    lasts = [len(ids(tokenizer, q["prompt"])) for q in QUESTIONS]
    assert np.flatnonzero(table.keep).tolist() == [lasts[0], len(table.sequences[0]) + lasts[1]]
    for answer, question, length in zip(table.answers, QUESTIONS, lasts):
        given = question["target"] if isinstance(question["target"], list) else [question["target"]]
        assert answer.targets == tuple(tuple(ids(tokenizer, each)) for each in given)
        assert table.position[answer.token] == length
        first = answer.targets[0]
        follow = table.token_id[answer.token + 1 : answer.token + 1 + len(first)]
        assert tuple(follow) == first
        assert table.next_token_id[answer.token] == first[0]
    assert table.answers[0].contrast == tuple(ids(tokenizer, " a cat"))
    assert table.answers[1].contrast == ()
    index = table.marks["target_index"]
    assert index[table.answers[1].token :].tolist() == [
        *range(len(table.answers[1].targets[0])),
        -1,
    ]
    assert table.next_token_id[np.flatnonzero(index >= 0)].tolist() == [
        *table.answers[0].targets[0], *table.answers[1].targets[0],
    ]  # fmt: skip


def test_columns_are_labels_and_numbers_stay_numbers(tokenizer):
    table = laid(QUESTIONS, tokenizer, columns=["category", "year"])
    assert table.marks["document"].tolist() == table.sequence.tolist()
    for name in ("category", "year", "prompt_id"):
        values = [question[name] for question in QUESTIONS]
        assert table.marks[name].tolist() == [values[each] for each in table.sequence]
    assert table.marks["year"].dtype == np.int64
    other = laid([dict(q, year=1991) for q in QUESTIONS], tokenizer, columns=["category", "year"])
    assert other.corpus_hash != table.corpus_hash


def test_every_container_gives_the_same_table(tokenizer, tmp_path):
    rows = [{**q, "target": " the mat", "contrast": " a cat"} for q in QUESTIONS]
    frame = pd.DataFrame(rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_csv(tmp_path / "b.csv.gz", index=False)
    frame.to_json(tmp_path / "c.jsonl.zst", orient="records", lines=True, compression="zstd")
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "a.parquet")
    wanted = laid(rows, tokenizer, columns=["category", "year"])
    for given in [frame, *sorted(tmp_path.iterdir())]:
        found = laid(given, tokenizer, columns=["category", "year"])
        assert found.corpus_hash == wanted.corpus_hash, given
        assert found.marks["year"].dtype == np.int64


def test_missing_values_are_nan_or_empty(tokenizer):
    rows = [{"prompt": "the cat", "a": 1, "b": None}, {"prompt": "the dog", "a": None, "b": "x"}]
    table = laid(rows, tokenizer, columns=["a", "b"])
    begins = [0, len(table.sequences[0])]
    assert np.isnan(table.marks["a"][begins[1]])
    assert table.marks["a"][0] == 1
    assert table.marks["b"][begins].tolist() == ["", "x"]


def test_columns_of_running_text_know_their_document(tokenizer):
    rows = [{"text": "the cat sat on the mat", "name": "a"}, {"text": "", "name": "no"},
            {"text": "and the dog sat on the cat", "name": "b"}]  # fmt: skip
    table = laid(rows, tokenizer, 8, columns=["name"])
    plain = laid([row["text"] for row in rows], tokenizer, 8)
    assert table.token_id.tolist() == plain.token_id.tolist()
    count = len(ids(tokenizer, rows[0]["text"]))
    inner = ~np.isin(table.token_id, [0, 1])
    assert table.marks["name"][inner].tolist() == ["a"] * count + ["b"] * (inner.sum() - count)
    assert table.marks["name"][table.token_id == 1].tolist() == ["b"]
    assert set(table.marks["document"]) == {0, 1}


@pytest.mark.parametrize("answered", [False, True])
def test_a_chat_is_what_the_template_makes_of_it(chatty, answered):
    item = {"messages": CHAT, **({"target": "the mat"} if answered else {})}
    table = laid([item], chatty)
    wanted = chatty.apply_chat_template(
        CHAT, tokenize=True, add_generation_prompt=answered, return_dict=False
    )
    assert table.sequences[0].tolist() == wanted + (ids(chatty, "the mat") if answered else [])
    assert (table.token_id == 0).sum() == 1
    assert answered == bool(table.answers)


def test_template_arguments_are_passed_on(chatty):
    item = {"messages": CHAT, "target": "the mat"}
    table = laid([item], chatty, template={"quiet": "the cat\n"})
    wanted = chatty.apply_chat_template(
        CHAT, tokenize=True, add_generation_prompt=True, return_dict=False, quiet="the cat\n"
    )
    assert table.sequences[0].tolist()[: len(wanted)] == wanted


def test_every_token_of_a_chat_has_the_role_of_its_message(chatty):
    table = laid([{"messages": CHAT, "target": "the mat"}], chatty)
    said = {}
    for text, role in zip(table.text, table.marks["role"]):
        said[role] = said.get(role, "") + text
    assert said["system"] == "<s>[system] the dog\n"
    assert said["user"] == "[user] the cat sat\n[user] and the dog\n"
    assert said["assistant"] == "[assistant] on the mat\n[assistant]\nthe mat"


def test_a_template_that_changes_earlier_turns_still_tells_who_speaks(chatty):
    forgetful = byte_level()
    forgetful.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}"
        "{% if loop.last %} (now){% endif %}\n{% endfor %}"
    )
    table = laid([{"messages": CHAT}], forgetful)
    text, role = "".join(table.text), table.marks["role"]
    spans = np.repeat(role, [len(each) for each in table.text])
    for message in CHAT:
        at = text.index(message["content"])
        assert set(spans[at + 1 : at + len(message["content"])]) == {message["role"]}


def kept(table, tokenizer):
    return [int(each) for each in np.flatnonzero(table.keep)]


def test_what_is_kept(chatty, tokenizer):
    table = laid(QUESTIONS, tokenizer, columns=["category"])
    usual = kept(table, tokenizer)
    rows = {rule: kept(laid(QUESTIONS, tokenizer, columns=["category"], keep=rule), tokenizer)
            for rule in (("usual",), ("all",), ("last",), ("target",), ("category=dogs",),
                         ("target", "category=cats"))}  # fmt: skip
    assert rows["usual",] == rows["last",] == usual
    assert rows["all",] == list(range(len(table)))
    lengths = [len(answer.targets[0]) for answer in table.answers]
    runs = [list(range(at, at + count)) for at, count in zip(usual, lengths)]
    assert rows["target",] == [*runs[0], *runs[1]]
    assert rows["category=dogs",] == usual[1:]
    assert rows["target", "category=cats"] == runs[0]
    chat = laid([{"messages": CHAT, "target": "the mat"}], chatty, keep=["role:user"])
    assert set(chat.marks["role"][chat.keep]) == {"user"}
    text = laid(["the cat sat on the mat"], tokenizer, keep=["last"])
    assert kept(text, tokenizer) == [len(text) - 1]


def test_prompts_without_targets_keep_what_running_text_keeps_or_the_last(tokenizer):
    rows = [{"prompt": "the cat sat on the mat"}]
    text = laid(["the cat sat on the mat"], tokenizer)
    table = laid(rows, tokenizer)
    assert table.keep.tolist() == text.keep.tolist()
    assert not table.answers
    assert kept(laid(rows, tokenizer, keep=["last"]), tokenizer) == [len(table) - 1]


def test_prompts_without_a_target_stand_beside_those_that_have_one(tokenizer):
    table = laid([*QUESTIONS, {"prompt": "the cat sat"}], tokenizer)
    assert table.answers[2].targets == ()
    assert table.answers[2].token == len(table) - 1
    assert np.flatnonzero(table.keep).tolist() == [each.token for each in table.answers]
    assert table.next_token_id[-1] == table.marks["target_index"][-1] == -1


def test_bos_stands_once_or_not_at_all(tokenizer):
    rows = [{"prompt": "<s>the cat"}, {"prompt": "the cat"}]
    assert [row.tolist().count(0) for row in laid(rows, tokenizer).sequences] == [1, 1]
    assert [row.tolist().count(0) for row in laid(rows, tokenizer, bos="text").sequences] == [1, 0]


def test_all_prompts_are_read_unless_told_and_then_it_is_said(tokenizer):
    rows = QUESTIONS * 100
    assert len(laid(rows, tokenizer).sequences) == 200
    some = laid(rows, tokenizer, max_tokens=100)
    assert len(some) <= 100
    assert f"first {len(some.sequences)} documents" in some.warning
    assert len(laid(["the cat sat "] * 1000, tokenizer)) == 1024


WRONG = {
    "a target that merges": ({"prompt": "the ca", "target": "t"}, ["merges", "begin the target"]),
    "a space that merges": ({"prompt": "the ", "target": "cat"}, ["merges", "off the prompt"]),
    "a missing column": ({"prompt": "the cat", "target": " sat", "x": 1}, ["'category'", "'x'"]),
    "an empty target": ({"prompt": "the cat", "target": ""}, ["target is empty"]),
    "no target in the list": ({"prompt": "the cat", "target": []}, ["list of targets is empty"]),
    "a number": ({"prompt": "the cat", "target": 4}, ["type int"]),
    "a contrast alone": ({"prompt": "the cat", "contrast": " sat"}, ["contrast and no target"]),
    "an empty prompt": ({"prompt": "", "target": " sat"}, ["prompt is empty"]),
    "another kind": ({"text": "the cat"}, ["'text'", "'prompt'"]),
    "no kind": ({"question": "the cat"}, ["neither"]),
    "a list in a column": (
        {"prompt": "the cat", "target": " sat", "category": [1]}, ["type list"]
    ),
    "too long": ({"prompt": "the cat" * 200, "target": " sat", "category": ""}, ["not cut"]),
    "half a pair": ({"prompt": "the \ud83d", "target": " sat"}, ["surrogate"]),
    "no template": ({"messages": CHAT}, ["'messages'"]),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_with_file_and_line(what, tokenizer, tmp_path):
    row, words = WRONG[what]
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, [*QUESTIONS, row])))
    with pytest.raises(ConfregError) as caught:
        laid(file, tokenizer, columns=["category"])
    said = str(caught.value)
    assert "ine 3 of " in said
    assert "q.jsonl" in said
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("items", "options", "words"),
    [
        ([{"messages": CHAT}], {}, "no chat template"),
        ([{"messages": []}], {}, "empty one"),
        ([{"messages": [{"role": "user"}]}], {}, "message 1 needs a role and a content"),
        (["the cat sat on"], {"template": {"a": 1}}, "holds no messages"),
        (["the cat sat on"], {"keep": ["target"]}, "no target"),
        (["the cat sat on"], {"keep": ["role:user"]}, "no label 'role'"),
        (["the cat sat on"], {"keep": ["first"]}, "--keep takes"),
        (QUESTIONS, {"keep": ["category=cats"]}, "--columns"),
        (QUESTIONS, {"keep": ["category=bats"], "columns": ["category"]}, "there are cats, dogs"),
        (QUESTIONS, {"columns": ["token"]}, "another name"),
        (QUESTIONS, {"max_tokens": 3}, "Not even the first"),
        (QUESTIONS, {"positions": 4}, "positions for 4"),
        ([{"text": ""}], {}, "yields 0 tokens"),
    ],
)
def test_other_mistakes(items, options, words, tokenizer):
    with pytest.raises(ConfregError, match=words):
        laid(items, tokenizer, **options)


def test_empty_files_are_named(tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ConfregError, match=r"empty\.jsonl.*no document"):
        laid(tmp_path / "empty.jsonl", tokenizer)


def test_options_are_read_from_the_command_line_and_from_python():
    given = SimpleNamespace(columns=["category,split", "year"], keep=["last"])
    read = Options.read({"columns": given.columns, "keep": "role:user",
                         "chat_template_kwargs": '{"enable_thinking": false}'})  # fmt: skip
    assert read.columns == ["category", "split", "year"]
    assert read.keep == ["role:user"]
    assert read.chat_template_kwargs == {"enable_thinking": False}
    assert Options.read({"max_tokens": "48"}).max_tokens == 48
    assert Options.read({"max_tokens": "all"}).max_tokens is None
    with pytest.raises(ConfregError, match="is no JSON"):
        Options.read({"chat_template_kwargs": "{"})


def shipped(name):
    return [record for _, record in tokens.read(f"confreg:{name}").records()]


def test_questions_of_fact_come_with_controls_that_nothing_answers():
    rows = {row["prompt_id"]: row for row in shipped("questions")}
    answered = [row for row in rows.values() if row["answerable"]]
    assert len(answered) == 120
    assert len(rows) == 240
    categories = [row["category"] for row in answered]
    assert {categories.count(each) for each in set(categories)} == {20}
    assert len(set(categories)) == 6
    for row in answered:
        control = rows[row["prompt_id"] + "-control"]
        assert (control["category"], "target" in control) == (row["category"], False)
        # The same sentence about something that there is not.
        words = [row["prompt"].split(), control["prompt"].split()]
        shared = set(words[0]) & set(words[1])
        assert len(shared) >= 4
        assert row["target"].startswith(" ")
    assert len({row["prompt"] for row in rows.values()}) == 240


def test_conflicts_state_another_answer_than_the_known_one():
    rows = shipped("conflicts")
    assert len(rows) == 60
    known = {row["target"] for row in shipped("questions") if row["answerable"]}
    for row in rows:
        assert row["prompt"].endswith(row["closed"])
        assert row["target"].strip() in row["prompt"]
        assert row["contrast"] != row["target"]
        assert {row["contrast"], row["target"]} <= known


def test_only_what_is_shipped_is_there():
    with pytest.raises(ConfregError, match="confreg:conflicts, confreg:questions"):
        tokens.read("confreg:answers")


@pytest.mark.model
@pytest.mark.parametrize("name", ["questions", "conflicts"])
def test_shipped_targets_follow_their_prompts(name):
    from confreg import models

    table = tokens.lay_out(
        tokens.read(f"confreg:{name}"), models.describe("smollm2-135m").tokenizer
    )
    assert table.keep.sum() == len(shipped(name))
