"""Where text comes from: files, folders, globs, the Hub, or strings in memory."""

from __future__ import annotations

import glob
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from confreg.errors import ConfregError
from confreg.tokens import documents, records
from confreg.tokens.records import Placed

SHIPPED = "confreg:"


@dataclass(frozen=True)
class Corpus:
    """Some documents, read only when they are asked for.

    Attributes
    ----------
    name
        A short description, stored with the results.
    """

    name: str
    _open: Callable[[], Iterator[str | Placed]]

    def records(self) -> Iterator[Placed]:
        """Iterate over the documents with all that is said of them, and where they stand."""
        for number, item in enumerate(self._open(), start=1):
            if isinstance(item, str):
                yield f"document {number} of {self.name}", {"text": item}
            else:
                yield item

    def documents(self) -> Iterator[str]:
        """Iterate over the documents, each a string, from the first; may be called again.

        A prompt is one string with its target, a chat the contents of its messages.
        """
        return (documents.plain(*placed) for placed in self.records())


def read(text: Any = None) -> Corpus:
    """Turn what a user may call "text" into a corpus.

    Parameters
    ----------
    text
        * nothing: the English help topics that every Python ships, ``pydoc_data.topics``;
        * a string, a path or a list of paths: sources, see :func:`read_sources`;
        * a list (or array, or Series) of strings: the documents themselves;
        * a list of dicts, or a pandas DataFrame: documents as `confreg.tokens.documents` says.

    Raises
    ------
    ConfregError
        If a source does not exist, or the list is empty, mixes kinds, or holds names of files as
        strings.
    """
    if text is None:
        return _help_topics()
    if isinstance(text, Corpus):
        return text
    if isinstance(text, str | Path):
        return read_sources([str(text)])
    if hasattr(text, "to_dict") and hasattr(text, "columns"):  # a data frame
        text = text.to_dict("records")
    elif hasattr(text, "tolist"):  # an array, a Series
        text = text.tolist()
    if not isinstance(text, Iterable) or isinstance(text, bytes | Mapping):
        raise ConfregError(
            f"text is {text!r}, of type {type(text).__name__}: give a path, a list of paths, "
            "a list of strings or of dicts, which are then the documents, or a data frame."
        )
    items = list(text)
    if not items:
        raise ConfregError(
            "text is an empty list: give at least one document or path, or leave text out "
            "for the default corpus."
        )
    if all(isinstance(item, str) for item in items):
        _refuse_names(items)
        return _given([{"text": str(item)} for item in items])
    if all(isinstance(item, Path) for item in items):
        return read_sources([str(item) for item in items])
    if all(isinstance(item, Mapping) for item in items):
        return _given(items)
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    raise ConfregError(
        f"text is a list of {kinds}: give a list of strings or of dicts (documents), or one of "
        "pathlib.Path (files and folders), not other things and not several kinds."
    )


def _refuse_names(items: list[str]) -> None:
    """Refuse strings that are all names of files: their names are hardly what is meant."""
    if all(
        item and len(item) < 4096 and "\n" not in item and _exists(Path(item)) for item in items
    ):
        raise ConfregError(
            "text is a list of strings, which are documents, and each names a file "
            f"({items[0]!r}): give pathlib.Path objects to have files read."
        )


def read_sources(sources: Sequence[str]) -> Corpus:
    """Read files, folders, globs and Hub datasets, one after the other.

    A file is one document, or holds several by its name: ``.jsonl``, ``.json``, ``.csv``, ``.tsv``,
    ``.parquet``, whose records are as `confreg.tokens.documents` says; each may be packed, ``.gz``
    or ``.zst``. A
    folder stands for such files and for ``.txt`` and ``.md`` in it and below, hidden ones left
    out, in sorted order. What can be read once only, as ``/dev/stdin``, is read at once and kept.
    ``confreg:questions`` and ``confreg:conflicts`` are prompts that confreg comes with, see
    docs/prompts.md. ``hf:dataset[/config][:split][#column]``
    is streamed from the Hugging Face Hub and needs ``pip install datasets``.

    Raises
    ------
    ConfregError
        If a source names nothing that exists. What is inside a source is only looked at,
        and complained about, when its documents are read.
    """
    if not sources:
        raise ConfregError("No text was given: name a file, a folder, a glob or hf:dataset.")
    parts = [_source(source) for source in sources]
    if len(parts) == 1:
        return parts[0]
    return Corpus(
        name=" + ".join(part.name for part in parts),
        _open=lambda: (placed for part in parts for placed in part.records()),
    )


def _source(source: str) -> Corpus:
    if source.startswith("hf:"):
        from confreg.tokens import hub

        return Corpus(source, hub.opener(source))
    if source.startswith(SHIPPED):
        file = _shipped(source)
        return Corpus(source, lambda: records.of_file(file))
    path = Path(source).expanduser()
    if _exists(path):
        files = _files_below(path) if path.is_dir() else [path]
    elif glob.has_magic(source):
        found = glob.glob(str(path), recursive=True)
        files = sorted(Path(name) for name in found if Path(name).is_file())
        if not files:
            raise ConfregError(f"The pattern {source!r} matches no file.")
    else:
        shown = source if len(source) <= 100 else source[:100] + "…"
        raise ConfregError(
            f"There is no file or folder {shown!r}. (In Python, text itself is given as a "
            "list of strings.)"
        )
    if any(_flows(file) for file in files):
        kept = [placed for file in files for placed in records.of_file(file)]
        return Corpus(source, lambda: iter(kept))
    return Corpus(source, lambda: (placed for file in files for placed in records.of_file(file)))


def _shipped(source: str) -> Path:
    """The file of a set of prompts that comes with confreg."""
    folder = Path(str(resources.files("confreg.recipes"))) / "data"
    file = folder / f"{source.removeprefix(SHIPPED)}.jsonl"
    known = sorted(each.stem for each in folder.glob("*.jsonl"))
    if file.stem not in known:
        raise ConfregError(
            f"There is no {source!r}; confreg comes with "
            f"{', '.join(SHIPPED + each for each in known)}."
        )
    return file


def _flows(file: Path) -> bool:
    """Whether a file can be read once only."""
    mode = file.stat().st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a sentence given as a path: too long, or with a NUL
        return False


def _files_below(folder: Path) -> list[Path]:
    found = sorted(
        file
        for file in folder.rglob("*")
        if records.is_known(file)
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )
    if not found:
        raise ConfregError(
            f"The folder {str(folder)!r} holds no text: no .txt, .md, .jsonl, .json, .csv, .tsv or "
            ".parquet. Name the files themselves, or a pattern such as "
            f"{str(folder / '*.rst')!r}."
        )
    return found


def _given(items: list[Any]) -> Corpus:
    count = len(items)
    name = f"{count} given document{'s' if count > 1 else ''}"
    return Corpus(name, lambda: records.of_items(items))


def _help_topics() -> Corpus:
    def help_topics() -> Iterator[str]:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ConfregError(
                "This Python comes without its help topics (pydoc_data.topics), the default "
                "corpus: name another text."
            ) from error
        return iter(topics.values())

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Corpus(f"help topics of Python {version} (pydoc_data.topics)", help_topics)
