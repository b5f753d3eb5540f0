"""Inputs that nobody thought of, a thousand of each, drawn alike every time.

Whatever is given, there are two ends: what was given is taken for what it is, or one sentence says
why not. No traceback, no half of it.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resuming import damage, digest
from test_tokens_table import byte_level

import confreg
from confreg import tokens
from confreg.errors import ConfregError
from confreg.models import Model
from confreg.places import profiles
from confreg.places.profiles import LocalProfile, NdifProfile
from confreg.results.open import reading
from confreg.subjects.neurons import choose
from confreg.tokens import records

THOUSAND = 1000


def try_out(examples: int, strategy: st.SearchStrategy[Any], holds: Callable[[Any], None]) -> None:
    """Try a property on so many inputs, the same ones every time."""
    chosen = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    chosen(given(strategy)(lambda drawn: holds(drawn)))()


def complain(about: str, error: ConfregError) -> None:
    """Check that an error is a sentence or two, which can be printed, and says about what."""
    said = str(error)
    said.encode()
    assert said.strip()
    assert about in said
    assert "Traceback" not in said


# Characters that have spoilt texts before, beside all others.
ODD = st.sampled_from(
    [
        *(
            "\0",
            "\r",
            "\r\n",
            "\u2028",
            "\x85",
            "\ufeff",
            "\u202e",
            "\u05d0\u05d1",
            "e\u0301",
            "\ud800",
        ),
        *("\N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL}", "<s>", "</s>", "<&added>"),
    ]
)
TEXT = st.lists(st.one_of(st.text(), ODD), max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def test_texts_are_read_to_the_last_character(tokenizer):
    def holds(documents: list[str]) -> None:
        try:
            table = tokens.cut(tokens.read(documents), tokenizer, 16)
        except ConfregError as error:
            complain("", error)
            return
        own = tokenizer("".join(map(normal, documents)), add_special_tokens=False)["input_ids"]
        added = len(table.sequences) + sum(bool(d) for d in map(normal, documents)) - 1
        assert len(table) <= len(own) + added + len(documents) * 4  # merges over documents' ends
        ids = [i for row in table.sequences for i in row.tolist()]
        read = tokenizer.decode(without(ids, {0, 1}), clean_up_tokenization_spaces=False)
        assert read == without_special("".join(map(normal, documents)))

    try_out(THOUSAND, st.lists(TEXT, max_size=4), holds)


def normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def without(ids: list[int], some: set[int]) -> list[int]:
    return [i for i in ids if i not in some]


def without_special(text: str) -> str:
    return text.replace("<s>", "").replace("</s>", "")


SUFFIXES = st.sampled_from(
    [".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".rst", "", ".zip", ".npy"]
)
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
PACKINGS = st.sampled_from(sorted(PACK))


# What a reader of JSON gives up on: depth, and numbers of many digits.
DEEP = st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b'{"text": 1%s}' % (b"0" * 5000)])


def test_a_file_of_any_bytes_is_read_or_named(tmp_path):
    def holds(drawn: tuple[bytes, str, str, bool]) -> None:
        content, suffix, packing, packed = drawn
        file = tmp_path / f"file{suffix}{packing}"
        if packed:
            content = {".gz": gzip.compress, ".zst": zstandard.compress}.get(packing, bytes)(
                content
            )
        file.write_bytes(content)
        try:
            found = list(tokens.read(file).documents())
        except ConfregError as error:
            complain("file", error)
            return
        assert all(isinstance(each, str) for each in found)
        if suffix in (".txt", ".md", ".rst", "") and packed | (not packing):
            unpacked = drawn[0].decode("utf-8-sig")
            assert found == [normal(unpacked)]

    lines = st.lists(
        st.one_of(
            st.just(b'{"text": "a"}'), st.just(b'"a","b'), st.just(b"text"), st.binary(), DEEP
        ),
        max_size=4,
    ).map(b"\n".join)
    content = st.one_of(st.binary(), lines, TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")))
    try_out(THOUSAND, st.tuples(content, SUFFIXES, PACKINGS, st.booleans()), holds)


def test_what_was_written_to_a_file_is_read_from_it(tmp_path):
    """Of every format, packed or not, damaged in one byte or not."""
    import csv

    def written(texts: list[str], suffix: str) -> bytes:
        import io

        if suffix == ".jsonl":
            return "\n".join(json.dumps({"text": t}) for t in texts).encode()
        if suffix == ".json":
            return json.dumps([{"text": t} for t in texts]).encode()
        if suffix == ".parquet":
            import pyarrow
            from pyarrow import parquet

            stream = io.BytesIO()
            parquet.write_table(pyarrow.table({"text": texts}), stream)
            return stream.getvalue()
        lines = io.StringIO(newline="")
        by = "\t" if suffix == ".tsv" else ","
        writer = csv.writer(lines, delimiter=by, quoting=csv.QUOTE_ALL)
        writer.writerows([["text"], *([t] for t in texts)])
        return lines.getvalue().encode()

    def holds(drawn: tuple[list[str], str, str, float | None]) -> None:
        texts, suffix, packing, damage = drawn
        content = written(texts, suffix)
        content = PACK[packing](content)
        if damage is not None:
            at = int(damage * (len(content) - 1))
            content = content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :]
        file = tmp_path / f"file{suffix}{packing}"
        file.write_bytes(content)
        try:
            found = list(tokens.read(file).documents())
        except ConfregError as error:
            complain("", error)
            if damage is None:
                raise
            return
        if damage is None:
            assert found == list(map(normal, texts))
        elif packing == ".gz":  # which has a checksum
            assert found == list(map(normal, texts)) or at < 10

    whole = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4)
    suffixes = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet"])
    damage = st.one_of(st.none(), st.floats(0, 1))
    try_out(THOUSAND, st.tuples(whole, suffixes, PACKINGS, damage), holds)


LAYERS, WIDTH = 4, 12


def meant(spec: str) -> set[tuple[int, int]] | None:
    """Neurons of a specification without draws, read by hand; None where it says nothing."""
    found = set()
    for part in filter(None, map(str.strip, spec.split(","))):
        if part == "all":
            found |= {(LAYERS - 1, i) for i in range(WIDTH)}
            continue
        layer, sign, rest = part.partition("." if "." in part else ":")
        first, _, last = rest.partition("-")
        if sign == "." and "-" in rest:
            return None
        if not (layer.removeprefix("-").isdecimal() and first.isdecimal()) or not layer.isascii():
            return None
        if not rest.isascii() or ("-" in rest and not last.isdecimal()):
            return None
        if len(layer) > 9 or len(rest) > 19:
            return None
        at = int(layer) + LAYERS * layer.startswith("-")
        span = range(int(first), int(last or first) + 1)
        if not (0 <= at < LAYERS) or not span or span[-1] >= WIDTH:
            return None
        found |= {(at, i) for i in span}
    return found or None


def test_neurons_are_those_that_were_named():
    def holds(spec: str) -> None:
        try:
            found = choose(spec, -1, LAYERS, WIDTH, seed=0)
        except ConfregError as error:
            complain("", error)
            assert meant(spec) is None or "random" in spec
            return
        pairs = list(zip(found.layer.tolist(), found.index.tolist()))
        assert pairs == sorted(set(pairs))
        if "random" not in spec:
            assert set(pairs) == meant(spec)
        else:
            drawn = [p for p in map(str.strip, spec.split(",")) if p.startswith("random:")]
            rest = meant(",".join(p for p in spec.split(",") if "random" not in p)) or set()
            assert len(pairs) == len(rest) + sum(int(p.removeprefix("random:")) for p in drawn)
            assert set(pairs) >= rest

    number = st.one_of(
        st.integers(-1, 14), st.integers(), st.sampled_from(["\u0663", "\u00b2", "0x1", "", " 1"])
    )
    part = st.one_of(
        st.sampled_from(
            ["all", "", " ", "random:", "random:2", "random:3", "random:-1", "expert:0"]
        ),
        st.builds("{}.{}".format, number, number),
        st.builds("{}:{}".format, number, number),
        st.builds("{}:{}-{}".format, number, number, number),
        st.builds("random:{}".format, number),
        st.just("1." + "9" * 5000),
        st.text(max_size=6),
    )
    try_out(THOUSAND, st.lists(part, max_size=4).map(",".join), holds)


def test_profiles_are_what_their_files_say(tmp_path):
    fields = sorted({*LocalProfile.model_fields, *NdifProfile.model_fields})
    value = st.one_of(
        st.text(max_size=5), st.integers(), st.floats(), st.booleans(), st.just([]), st.just({}),
        st.sampled_from(["6GB", "local", "ndif", "http://127.0.0.1:1", "cpu", "float32"]),
        st.dictionaries(st.sampled_from(["cpu", "0", ""]), st.sampled_from(["1GB", 3, -1, "x"])),
    )  # fmt: skip
    settings_ = st.dictionaries(st.one_of(st.sampled_from(fields), st.text(max_size=4)), value)
    names = st.one_of(
        st.sampled_from([*fields, "max_memory.cpu", "a.b.c", "", ".", "name.x"]),
        st.text(max_size=4),
    )
    overrides = st.dictionaries(names, value, max_size=2)
    kinds = st.sampled_from([{}, {"kind": "local"}, {"kind": "ndif", "host": "http://127.0.0.1:1"}])

    def holds(drawn: tuple[dict, dict, bytes | None, dict]) -> None:
        kind, given_, garbage, changed = drawn
        file = tmp_path / "own.toml"
        values = kind | given_
        try:
            content = to_toml(values)
            as_written = tomllib.loads(content)
        except (UnicodeEncodeError, tomllib.TOMLDecodeError):
            return  # there is no such file
        file.write_bytes(garbage if garbage is not None else content.encode())
        try:
            found = profiles.load(file, changed)
        except ConfregError as error:
            complain("" if changed else "own", error)
            return
        if garbage is not None:
            return
        for name, value in as_written.items():
            if not any(each == name or each.startswith(f"{name}.") for each in changed):
                kept = getattr(found, name)
                if isinstance(value, str | bool) and isinstance(kept, type(value)):
                    assert kept == value
        for name in set(as_written) | {each.split(".")[0] for each in changed}:
            assert name in type(found).model_fields  # nothing was left out

    garbage = st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=20))
    try_out(THOUSAND, st.tuples(kinds, settings_, garbage, overrides), holds)


def to_toml(values: dict) -> str:
    def write(value: Any) -> str:
        if isinstance(value, dict):
            inside = ", ".join(f"{json.dumps(str(k))} = {write(v)}" for k, v in value.items())
            return f"{{{inside}}}"
        if isinstance(value, float):
            return repr(value) if abs(value) < 1e15 else f"{value:e}"
        return json.dumps(value)

    content = "".join(f"{json.dumps(key)} = {write(value)}\n" for key, value in values.items())
    content.encode()
    return content


# ---- stores -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A finished store, how it is made, and what it holds."""
    model = Model.wrap(*zoo.tiny("llama"), name="tiny")
    folder = tmp_path_factory.mktemp("sealed")
    text = [" ".join(f"w{2 + (i * 7 + j * 13) % 88}" for i in range(30)) for j in range(4)]

    def run() -> None:
        confreg.run(
            "entropy_neurons", model=model, text=text, neurons="2:0-3", sequence_length=16,
            max_tokens=32, progress=False, out=folder / "run.zarr",
        )  # fmt: skip

    run()
    shutil.copytree(folder / "run.zarr", folder / "kept.zarr")
    return folder / "run.zarr", run, digest(folder / "run.zarr")


def drawn_damage(whole: dict[str, str]) -> st.SearchStrategy[tuple[str, str, float]]:
    ways = st.sampled_from(["removed", "cut", "changed"])
    return st.tuples(st.sampled_from(sorted(whole)), ways, st.floats(0, 1))


@pytest.mark.parametrize("examples", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_a_damaged_store_opens_as_it_was_or_says_so(examples, sealed):
    out, _, whole = sealed
    as_it_was = confreg.open(out).load()

    def holds(drawn: tuple[str, str, float]) -> None:
        name, how, where = drawn
        damage(out / name, how, where)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                with reading(out):
                    found = confreg.open(out).load()
            assert found.identical(as_it_was) or said
        except ConfregError as error:
            complain("", error)
        finally:
            shutil.copy(out.with_name("kept.zarr") / name, out / name)

    try_out(examples, drawn_damage(whole), holds)
    assert digest(out) == whole


@pytest.mark.parametrize("examples", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_running_again_mends_a_damaged_store_to_the_same_bytes(examples, sealed):
    out, run, whole = sealed

    def holds(drawn: tuple[str, str, float]) -> None:
        name, how, where = drawn
        damage(out / name, how, where)
        try:
            run()
            assert digest(out) == whole, (name, how)
        except ConfregError as error:
            complain("", error)
            assert name == "zarr.json"  # without it there is no store to speak of
            shutil.copy(out.with_name("kept.zarr") / name, out / name)

    try_out(examples, drawn_damage(whole), holds)


def test_a_damaged_seal_damages_nothing(sealed):
    """A bit of each of its first bytes, and some of all others."""
    out, run, whole = sealed
    (file,) = (out / "work" / "seal" / "c").iterdir()
    content, draw = file.read_bytes(), random.Random(0)
    trusted = [content]
    from confreg.sweep import seal

    before = seal.read(out)
    for bit in [*range(0, 256, 8), *(draw.randrange(8 * len(content)) for _ in range(60))]:
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        file.write_bytes(spoilt)
        if seal.read(out) not in (None, before):
            trusted.append(bytes(spoilt))
    assert len(trusted) == 1
    run()
    assert digest(out) == whole


def test_a_seal_covers_every_file(sealed):
    from confreg.sweep import seal

    out, _, whole = sealed
    covered = seal.read(out)
    assert covered is not None
    assert set(whole) - set(covered) == {n for n in whole if n.startswith("work/seal/")}
    assert np.all([name in whole for name in covered])
    assert records.is_known(Path("a.jsonl.gz"))
