"""Token counts: how often each token of a vocabulary occurs in a text."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from confreg.errors import ConfregError
from confreg.tokens.sources import Corpus, read_sources
from confreg.tokens.table import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIMIT = 10_000_000  # tokens that are counted unless more is asked for
ENOUGH = 10  # counted tokens for each token of the vocabulary, below which counts are coarse


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each token occurs.

    Attributes
    ----------
    values
        Counts by token id, int64 (V,); 0 at rows of the unembedding that no token owns.
    source
        The file or the text they are from.
    tokens
        Tokens that the vocabulary has, where rows that none owns are known; else as many as rows.
    """

    values: np.ndarray
    source: str
    tokens: int | None = None

    def owned_by(self, owned: np.ndarray) -> Counts:
        """The same at rows that a token owns, (V,) bool; what a file holds at others counts not."""
        return Counts(np.where(owned, self.values, 0), self.source, int(owned.sum()))

    @property
    def total(self) -> int:
        """Counted tokens."""
        return int(self.values.sum())

    @property
    def sha256(self) -> str:
        """SHA-256 over the counts."""
        return hashlib.sha256(np.ascontiguousarray(self.values, dtype="<i8").tobytes()).hexdigest()

    def packed(self, owned: np.ndarray) -> np.ndarray:
        """Each count plus one, the tokens' bytes side by side: (bytes, V) uint8.

        Bytes of the same weight compress together, least significant first. 0 at rows that no token
        owns: ``owned`` (V,) bool says which do.
        """
        smoothed = np.where(owned, self.values + 1, 0)
        planes = smoothed.astype("<i8").view(np.uint8).reshape(-1, 8).T
        return np.ascontiguousarray(planes[: 1 + int(np.flatnonzero(planes.any(1))[-1])])

    @property
    def attributes(self) -> dict[str, str | int]:
        """What a dataset says of them."""
        said: dict[str, str | int] = {
            "counts": self.source,
            "counts_sha256": self.sha256,
            "counts_tokens": self.total,
        }
        return {**said, **({"counts_warning": self.warning} if self.warning else {})}

    @property
    def warning(self) -> str:
        """What is wrong with so few counts for so large a vocabulary; empty if nothing is."""
        tokens = len(self.values) if self.tokens is None else self.tokens
        if self.total >= ENOUGH * tokens:
            return ""
        never = tokens - int((self.values > 0).sum())
        return (
            f"{self.total:,} tokens were counted ({self.source}) for a vocabulary of "
            f"{tokens:,}, of which {never:,} never occur: the token frequencies are "
            "coarse. Count more text, see confreg counts."
        )

    def save(self, path: str | Path) -> None:
        """Write as .npy, or as .csv with the columns token_id and count.

        Raises
        ------
        ConfregError
            Another suffix, or a file that cannot be written.
        """
        path = Path(path).expanduser()
        if path.suffix not in SUFFIXES:
            raise ConfregError(
                f"Counts are written to a .npy or a .csv file, not to {str(path)!r}."
            )
        partial = path.with_name(f".{path.stem}.partial{path.suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npy":
                np.save(partial, self.values)
            else:
                lines = (f"{i},{n}\n" for i, n in enumerate(self.values.tolist()))
                partial.write_text("token_id,count\n" + "".join(lines))
            partial.replace(path)
        except OSError as error:
            raise ConfregError(f"{str(path)!r} cannot be written: {error.strerror}.") from error


SUFFIXES = (".npy", ".csv")


def count(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    max_tokens: int | None = LIMIT,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Counts:
    """Count the tokens of a text, streaming.

    Parameters
    ----------
    size
        Rows of the unembedding: the length of the counts.
    max_tokens
        Stop after at least as many tokens; None: count all of the text.
    advance
        Called with the number of tokens of every part of the text.

    Raises
    ------
    ConfregError
        The text yields no token, or one beyond ``size``.
    """
    values, total = np.zeros(size, dtype=np.int64), 0
    for _, ids in encode(corpus, tokenizer):
        found = np.bincount(ids, minlength=size)
        if len(found) > size:
            raise ConfregError(
                f"The tokenizer yields token {len(found) - 1}; the model has {size:,} rows."
            )
        values += found
        total += len(ids)
        advance(len(ids))
        if max_tokens is not None and total >= max_tokens:
            break
    if not total:
        raise ConfregError(f"The text to count ({corpus.name}) yields no token.")
    stopped = max_tokens is not None and total >= max_tokens
    return Counts(values, f"first {total:,} tokens of {corpus.name}" if stopped else corpus.name)


def load(path: str | Path, size: int) -> Counts:
    """Read counts from a file.

    Parameters
    ----------
    path
        A .npy with one count a token id, or a .csv whose lines are token id and count (a
        header is skipped; tokens that are not listed count 0).
    size
        Rows of the unembedding. A shorter array is of a vocabulary without padding rows.

    Raises
    ------
    ConfregError
        It cannot be read, or is no list of counts for this vocabulary.
    """
    path = Path(path).expanduser()
    try:
        values = np.load(path) if path.suffix == ".npy" else _read_csv(path, size)
    except ConfregError:
        raise
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise ConfregError(f"Counts cannot be read from {str(path)!r}: {error}") from error
    whole = values.ndim == 1 and values.dtype.kind in "iuf" and bool((values == values // 1).all())
    if not whole or (values < 0).any() or not values.any():
        raise ConfregError(
            f"{str(path)!r} holds {values.dtype} of shape {values.shape}: counts are whole "
            "numbers from 0, one for each token id, and not all 0."
        )
    if len(values) > size:
        raise ConfregError(
            f"{str(path)!r} holds counts of {len(values):,} tokens; the model has {size:,}. "
            "They are of another tokenizer."
        )
    full = np.zeros(size, dtype=np.int64)
    full[: len(values)] = values
    return Counts(full, path.name)


def _read_csv(path: Path, size: int) -> np.ndarray:
    values = np.zeros(size, dtype=np.int64)
    with path.open(newline="") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            try:
                token, count = int(row[0]), int(row[1])
            except (ValueError, IndexError):
                if number == 1:  # a header
                    continue
                raise ConfregError(
                    f"Line {number} of {str(path)!r} is not a token id and a count."
                ) from None
            if not 0 <= token < size:
                raise ConfregError(
                    f"Line {number} of {str(path)!r}: there is no token {token}, the model has "
                    f"{size:,}. The counts are of another tokenizer."
                )
            values[token] += count
    return values


def read(spec: str | None, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, size: int) -> Counts:
    """Counts as a recipe's parameter ``counts`` names them.

    Parameters
    ----------
    spec
        A .npy or .csv file of counts; or text to count, as `confreg.tokens.read_sources` takes
        it; None for ``corpus``. Of a text, the first `LIMIT` tokens are counted.
    """
    if spec is None:
        return cached(corpus, None, tokenizer, size)
    if spec.endswith(SUFFIXES) and not spec.startswith("hf:"):
        return load(spec, size)
    return cached(read_sources([spec]), spec, tokenizer, size)


def cached(
    corpus: Corpus, spec: str | None, tokenizer: PreTrainedTokenizerBase, size: int
) -> Counts:
    """Count a text, once: text named by a source is not counted again while it is unchanged."""
    place = None if spec is None else _cache(spec, tokenizer, size)
    if place is not None and place.is_file():
        return Counts(load(place, size).values, corpus.name)
    found = count(corpus, tokenizer, size)
    if place is not None:
        found.save(place)
    return found


def _cache(spec: str, tokenizer: PreTrainedTokenizerBase, size: int) -> Path:
    import platformdirs

    digest = hashlib.sha256(f"{spec}\n{size}\n{_fingerprint(spec)}".encode())
    for word, token in sorted(tokenizer.get_vocab().items()):
        digest.update(f"{token} {word}\n".encode())
    name = f"{digest.hexdigest()[:20]}.npy"
    return Path(platformdirs.user_cache_dir("confreg")) / "counts" / name


def _fingerprint(spec: str) -> str:
    """Say which files a source means, and in which state they are."""
    if spec.startswith("hf:"):
        return ""
    path = Path(spec).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.is_file():
        files = [path]
    else:
        import glob

        files = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
    state = ((f.resolve(), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return "\n".join(" ".join(map(str, each)) for each in state)
