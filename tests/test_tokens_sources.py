"""Text from files, folders, globs, the Hub and memory."""

import gzip
import importlib.util
import json
import os
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zstandard

from confreg import tokens
from confreg.errors import ConfregError
from confreg.tokens import hub, records


def documents(text):
    return list(tokens.read(text).documents())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.txt").write_text("bee\r\nline", encoding="utf-8", newline="")
    (tmp_path / "a.md").write_text("\ufeffcafé", encoding="utf-8")
    (tmp_path / "skipped.py").write_text("pass")
    (tmp_path / "deep").mkdir()
    lines = [json.dumps({"text": word}) for word in ("one", "two")]
    (tmp_path / "deep" / "c.jsonl").write_text("\n\n".join(lines) + "\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    return tmp_path


def test_default_is_the_help_topics():
    corpus = tokens.read()
    assert "pydoc_data.topics" in corpus.name
    assert any("assert" in document for document in corpus.documents())
    assert list(corpus.documents()) == list(corpus.documents())


def test_strings_are_documents_unless_all_name_files(folder):
    assert documents([str(folder / "b.txt"), "no file"]) == [str(folder / "b.txt"), "no file"]
    assert documents([folder / "b.txt"]) == ["bee\nline"]
    with pytest.raises(ConfregError, match=r"each names a file.*pathlib\.Path"):
        tokens.read([str(folder / "b.txt"), str(folder / "deep")])


def test_folder_is_read_recursively_and_in_order(folder):
    assert documents(folder) == ["café", "bee\nline", "one", "two"]
    assert documents(str(folder)) == documents([folder])


def test_file_of_any_name_is_text(folder):
    assert documents(folder / "skipped.py") == ["pass"]


def test_glob(folder):
    assert documents(str(folder / "*.txt")) == ["bee\nline"]
    assert documents(str(folder / "**" / "*.jsonl")) == ["one", "two"]


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    (tmp_path / "what[1].txt").write_text("found")
    assert documents(tmp_path / "what[1].txt") == ["found"]


def test_sources_are_joined(folder):
    corpus = tokens.read_sources([str(folder / "b.txt"), str(folder / "deep")])
    assert list(corpus.documents()) == ["bee\nline", "one", "two"]
    assert "b.txt" in corpus.name
    assert "deep" in corpus.name


def test_corpus_passes_through():
    corpus = tokens.read(["x"])
    assert tokens.read(corpus) is corpus


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "empty list"),
        (["a", Path("a")], "not several kinds"),
        ({"text": "a"}, "of type dict"),
        (b"bytes", "of type bytes"),
        ([1, 2], "list of int"),
        (3, "of type int"),
        ("no/such/file.txt", "no file or folder 'no/such/file.txt'"),
        ("The cat sat on the mat. " * 200, "list of strings"),
        ("no/such/*.txt", "matches no file"),
        ("hf:", "does not read as hf:dataset"),
        ("hf:a/b/c/d", "does not read as hf:dataset"),
    ],
)
def test_what_is_no_text_is_refused(text, message):
    with pytest.raises(ConfregError, match=message):
        tokens.read(text)


def test_folder_without_text(tmp_path):
    with pytest.raises(ConfregError, match=r"holds no text: no \.txt"):
        tokens.read(tmp_path)


def test_no_sources():
    with pytest.raises(ConfregError, match="No text was given"):
        tokens.read_sources([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "café".encode("latin-1"), "not UTF-8"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": ', "Line 2 of .*bad.jsonl.* is no JSON"),
        ("other.jsonl", b'{"body": "x"}', "Line 1 .*has no field 'text': it has 'body'"),
        ("list.jsonl", b'["x"]', "field 'text'"),
        ("number.jsonl", b'{"text": 3}', "of type int"),
        (
            "pair.jsonl",
            b'{"text": "bad \\ud83d half"}',
            "Line 1 of .* surrogate pair at character 4",
        ),
        ("bad.json", b"[1, ", "bad.json' is no JSON"),
        ("list.json", b'["a"]', "Object 1 of .* no JSON object"),
        ("body.csv", b"body\nx\n", "Line 2 of .*has no field 'text': it has 'body'"),
        ("short.csv", b"text,category\nx\n", "Line 2 of .* fields"),
        ("long.tsv", b"text\nx\ty\n", "Line 2 of .* fields"),
        ("no.parquet", b"PAR1", "no Parquet file"),
        ("no.txt.gz", b"plain", "cannot be read"),
        ("no.txt.zst", b"plain", "cannot be read"),
        ("cut.txt.gz", gzip.compress(b"plain text" * 99, mtime=0)[:-9], "cannot be read"),
        ("a.pdf", b"%PDF", "convert it to .txt"),
        ("a.tar.bz2", b"", "unpack it"),
        ("a.xlsx", b"", "save it as .csv"),
    ],
)
def test_unreadable_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    corpus = tokens.read(tmp_path / name)
    with pytest.raises(ConfregError, match=message):
        list(corpus.documents())


RECORDS = [{"text": "one, two\nthree", "n": 1}, {"text": "vier \u00fc \U0001f600", "n": 2}]
TEXTS = [record["text"] for record in RECORDS]


def written(name, tmp_path):
    """A file of `RECORDS`, in the format and packing that its name says."""
    frame, path = pd.DataFrame(RECORDS), tmp_path / name
    kind = records.suffix(path)
    if kind == ".parquet":
        content = frame.to_parquet()
    elif kind in (".csv", ".tsv"):
        content = frame.to_csv(index=False, sep="," if kind == ".csv" else "\t").encode()
    else:
        content = frame.to_json(orient="records", lines=kind == ".jsonl").encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".zst"):
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_formats(kind, packing, tmp_path):
    file = written(f"a.{kind}{packing}", tmp_path)
    assert documents(file) == TEXTS
    assert documents(tmp_path) == TEXTS, "found in a folder"
    assert next(record for _, record in records.of_file(file)).keys() == {"text", "n"}


def test_packed_plain_text(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("caf\u00e9".encode()))
    (tmp_path / "b.md.zst").write_bytes(zstandard.compress(b"two"))
    assert documents(tmp_path) == ["caf\u00e9", "two"]


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame(RECORDS),
        pd.Series(TEXTS),
        np.array(TEXTS, dtype=object),
        tuple(TEXTS),
        RECORDS,
        iter(TEXTS),
    ],
    ids=["frame", "series", "array", "tuple", "dicts", "iterator"],
)
def test_containers_are_what_they_hold(given):
    corpus = tokens.read(given)
    assert list(corpus.documents()) == list(corpus.documents()) == TEXTS


def test_a_container_without_text_says_what_it_has():
    with pytest.raises(ConfregError, match="Given document 1 has no field 'text': it has 'body'"):
        documents(pd.DataFrame({"body": ["x"]}))
    with pytest.raises(ConfregError, match="Given document 2 has half of a surrogate pair"):
        documents(["fine", "bad \ud83d"])


def test_line_breaks_are_the_same_wherever_text_comes_from(tmp_path):
    text = "one\r\ntwo\rthree\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    for given in (tmp_path / "a.txt", tmp_path / "a.jsonl", [text], [{"text": text}]):
        assert documents(given) == ["one\ntwo\nthree\n"]


def test_what_flows_is_read_once_and_kept(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("from a pipe"), daemon=True)
    writer.start()
    corpus = tokens.read(pipe)
    assert list(corpus.documents()) == list(corpus.documents()) == ["from a pipe"]


def test_hub_names():
    assert hub.parse("hf:imdb") == ([("imdb", None)], None, None)
    assert hub.parse("hf:NeelNanda/pile-10k").candidates == [
        ("NeelNanda/pile-10k", None),
        ("NeelNanda", "pile-10k"),
    ]
    assert hub.parse("hf:Salesforce/wikitext/wikitext-2-raw-v1:test#text") == (
        [("Salesforce/wikitext", "wikitext-2-raw-v1")],
        "test",
        "text",
    )


def test_without_datasets_the_package_is_named(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ConfregError, match="pip install datasets"):
        tokens.read("hf:imdb")


class DatasetNotFoundError(Exception):
    pass


class ConnectError(Exception):
    """Named as httpx names it."""


@pytest.fixture
def fake_hub(monkeypatch):
    """Stand in for the package datasets with one dataset, ``wikitext`` of no namespace."""
    rows = [{"text": "one", "n": 1}, {"text": None, "n": 2}, {"text": "three", "n": 3}]
    read = []

    def stream():
        for row in rows:
            read.append(row["n"])
            yield row

    class Rows:
        def __iter__(self):
            return stream()

    def load_dataset(name, config, streaming):
        assert streaming
        if name == "away":
            try:
                raise ConnectError("[Errno -2] Name or service not known")
            except ConnectError as error:
                raise RuntimeError("Couldn't reach the Hub.") from error
        if name == "broken":
            raise ValueError("Config name is missing.\nPlease pick one among ['x', 'y']")
        if (name, config) not in (("wikitext", None), ("wikitext", "raw")):
            raise DatasetNotFoundError(name)
        return {"test": Rows(), "train": Rows()} if config is None else {"test": Rows()}

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset
    exceptions = types.ModuleType("datasets.exceptions")
    exceptions.DatasetNotFoundError = DatasetNotFoundError
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", exceptions)
    monkeypatch.setattr(hub, "find_spec", lambda name: True)
    return read


def test_hub_streams_lazily(fake_hub):
    stream = tokens.read("hf:wikitext").documents()
    assert fake_hub == []
    assert next(stream) == "one"
    assert fake_hub == [1]
    assert list(stream) == ["", "three"]


def test_hub_config_of_a_dataset_without_owner(fake_hub):
    assert documents("hf:wikitext/raw#text") == ["one", "", "three"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:wikitext:valid", "no split 'valid'; there are test, train"),
        ("hf:wikitext#body", "no column 'body'; there are text, n"),
        ("hf:wikitext#n", "column 'n' holds int"),
        ("hf:nobody/nothing", "no such dataset"),
        ("hf:away", "cannot be reached"),
        ("hf:broken", r"Please pick one among \['x', 'y'\]"),
    ],
)
def test_hub_failures_are_a_sentence(fake_hub, source, message):
    with pytest.raises(ConfregError, match=message):
        documents(source)


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="datasets is not installed"
)
def test_real_datasets_streams_a_folder(tmp_path, monkeypatch):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "train.jsonl").write_text('{"body": "x", "n": 1}\n{"body": "y", "n": 2}')
    monkeypatch.chdir(tmp_path)
    assert documents("hf:local") == ["x", "y"]
    with pytest.raises(ConfregError, match="no split 'test'"):
        documents("hf:local:test")
