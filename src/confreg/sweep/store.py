"""The Zarr directory that a run writes, and resumes.

The root group is the dataset. Beside it, the group ``work`` has a group for every step and
derivation: a done mask with one flag a unit (written after the unit's data), and the parts of
variables that are gathered over axes, one a unit, which are gathered in the order of the units once
all are there. ``work/hidden`` has what later steps and derivations need and the dataset does not
show. Nothing in the store depends on the clock or on where a run was stopped, so that a run which
was killed and started again ends with the same bytes as one which was not.
"""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from confreg.axes import Axis, Spans, Variable
from confreg.errors import ConfregError
from confreg.sweep import seal
from confreg.sweep.layout import Layout
from confreg.sweep.step import Derivation

VERSION = "2.0"
READS = ("1", "2")
"""Major versions of stores that can be opened; those of another than `VERSION` are not resumed."""
SCHEMA_ATTRIBUTE = "confreg_schema"
CONFIGURATION = "configuration"
WORK, HIDDEN = "work", "hidden"
ORDER = "variables"
"""Attribute that says in which order variables and coordinates are shown."""
Value = str | int | float


class Store:
    """A store that is being written. Use `Store.create` or `Store.resume`.

    Attributes
    ----------
    path : Path
    root, work, hidden : zarr.Group
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = zarr.open_group(path, mode="r+", use_consolidated=False)
        self.work = _group(self.root, WORK)
        self.hidden = _group(self.work, HIDDEN)

    @classmethod
    def create(
        cls, path: Path, configuration: Mapping[str, Any], attributes: Mapping[str, Value]
    ) -> Store:
        """Make an empty store.

        Built under another name and moved into place whole, so that a store either is one
        or is not there.
        """
        building = path.with_name(f".{path.name}.building")
        with disk_errors(path):
            shutil.rmtree(building, ignore_errors=True)
            building.parent.mkdir(parents=True, exist_ok=True)
            root = zarr.open_group(building, mode="w", zarr_format=3)
            root.create_group(WORK).create_group(HIDDEN)
            root.attrs.update(
                {
                    SCHEMA_ATTRIBUTE: VERSION,
                    CONFIGURATION: json.dumps(configuration, sort_keys=True),
                    "complete": 0,
                    **attributes,
                }
            )
            building.rename(path)
        return cls(path)

    @classmethod
    def resume(cls, path: Path, configuration: Mapping[str, Any]) -> Store:
        """Open a store to go on with it.

        Raises
        ------
        ConfregError
            It is no store, of another schema, or made by another configuration.
        """
        if not is_store(path):
            seal.restore(path)
        root = open_root(path)
        schema = str(root.attrs[SCHEMA_ATTRIBUTE])
        if schema.split(".")[0] != VERSION.split(".")[0]:
            raise ConfregError(
                f"The store {str(path)!r} has schema {schema}: it can be opened, and not be gone "
                f"on with, since this confreg writes {VERSION}. Write to another --out."
            )
        seal.restore(path)
        root = open_root(path)
        if CONFIGURATION not in root.attrs or WORK not in root:
            raise ConfregError(
                f"The store {str(path)!r} lacks what a run needs to go on: it is a copy of a "
                "dataset (as to_zarr writes one). It can be opened. Write to another --out, or "
                "replace it with --overwrite."
            )
        before = json.loads(str(root.attrs[CONFIGURATION]))
        if said := changed(before, configuration):
            raise ConfregError(
                f"The store {str(path)!r} was made by another configuration ({said}). "
                "Write to another --out, or replace it with --overwrite."
            )
        for left in path.rglob("*.partial"):  # a write that was killed
            left.unlink(missing_ok=True)
        return cls(path)

    @property
    def complete(self) -> bool:
        """Whether the run that writes this store has ended."""
        return bool(self.root.attrs["complete"])

    def lacks(self, axis: Axis) -> list[str]:
        """The labels of an axis that are not there, or not whole."""
        return [
            name
            for name in axis.labels
            if name not in self.root or not self._is_whole(self.root[name])
        ]

    def label(self, axis: Axis, names: Sequence[str]) -> None:
        """Write some labels of an axis."""
        for name in names:
            label = axis.labels[name]
            dims = label.dims or (axis.name,)
            with disk_errors(self.path):
                if name != axis.name:
                    self._note_coordinate(name)
                # Last: what is whole is not looked at again.
                self._write(self.root, name, dims, label.values, label.attributes)

    def lay_out(self, layout: Layout) -> None:
        """Make the arrays of a step, unless they are there."""
        with disk_errors(self.path):
            work = self.work.require_group(layout.name)
            if "cuts" not in work.attrs:  # before all else: arrays are chunked by them
                work.attrs["cuts"] = json.dumps({k: list(v) for k, v in layout.cuts.items()})
            for variable in layout.step.gives:
                parts = [len(layout.cuts[axis]) for axis in variable.gathered_over]
                shape = (*parts, *layout.shape(variable))
                chunks = (*(1 for _ in parts), *layout.chunk(variable))
                dims = (*(f"{axis}_unit" for axis in variable.gathered_over), *variable.dims)
                where = work if parts else self._home(variable)
                if variable.name not in where:
                    _array(where, variable, shape, chunks, dims)
            if "done" not in work:
                dims = [f"{axis}_unit" for axis in layout.cuts]
                _done(work, layout.counts, dims)

    def cuts(self, name: str) -> dict[str, list[tuple[int, int]]] | None:
        """The units into which a step was cut when it was begun, if it was."""
        if name not in self.work or "cuts" not in self.work[name].attrs:
            return None
        found = json.loads(str(self.work[name].attrs["cuts"]))
        return {axis: [(int(a), int(b)) for a, b in spans] for axis, spans in found.items()}

    def done(self, name: str) -> np.ndarray:
        """The done mask of a step or a derivation, one flag a unit."""
        return np.asarray(_get(_group(self.work, name), "done")[...], dtype=bool)

    def write_unit(self, layout: Layout, spans: Spans, block: Mapping[str, np.ndarray]) -> None:
        """Write one unit's block, as `Layout.check` returns it, then its done flag."""
        with disk_errors(self.path):
            for variable in layout.step.gives:
                if layout.is_written(variable, spans):
                    array, where = self._part(layout, variable, spans)
                    array[where] = block[variable.name]
            _get(_group(self.work, layout.name), "done")[spans.at] = 1

    def _part(self, layout: Layout, variable: Variable, spans: Spans) -> tuple[Any, tuple]:
        place = dict(zip(layout.cuts, spans.at))
        parts = [place[axis] for axis in variable.gathered_over]
        where = [spans[dim] if dim in spans else slice(None) for dim in variable.dims]
        home = _group(self.work, layout.name) if parts else self._home(variable)
        return _get(home, variable.name), (*parts, *where)

    def gather(self, layout: Layout) -> None:
        """Make one of the units' parts, in their order, for every variable that has such.

        One part after the other: no more than two are held at once.
        """
        work = _group(self.work, layout.name)
        for variable in layout.step.gives:
            if not variable.gathered_over:
                continue
            parts = _get(work, variable.name)
            units = parts.shape[: len(variable.gathered_over)]
            total = None
            for at in np.ndindex(units):
                part = np.asarray(parts[at])
                # NaN where a unit has nothing to say is no largest.
                total = part if total is None else variable.gather(total, part)
            self.write(variable, total)

    def write(self, variable: Variable, values: Any) -> None:
        """Write a whole variable."""
        with disk_errors(self.path):
            values = np.asarray(values)
            values = values.astype(object if variable.dtype == "str" else variable.dtype)
            self._write(
                self._home(variable), variable.name, variable.dims, values, variable.attributes
            )

    def write_span(self, variable: Variable, dim: str, span: slice, values: np.ndarray) -> None:
        """Write a span of a variable along one of its dims."""
        where = tuple(span if each == dim else slice(None) for each in variable.dims)
        with disk_errors(self.path):
            _get(self._home(variable), variable.name)[where] = values

    def lay_out_derivation(
        self, item: Derivation, name: str, axes: Mapping[str, Axis], size: int
    ) -> list[tuple[int, int]]:
        """Make the arrays of a derivation, and say in which spans it is computed.

        Those are of ``size`` entries, or as they were when it was begun.
        """
        with disk_errors(self.path):
            work = self.work.require_group(name)
            size = int(str(work.attrs.get("size", size)))
            length = 1 if item.by is None else len(axes[item.by])
            spans = [(a, min(a + size, length)) for a in range(0, length, size)]
            if "done" not in work:
                work.attrs["size"] = size
                _done(work, (len(spans),), ["span"])
            for variable in item.gives:
                home = self._home(variable)
                if item.by is not None and variable.name not in home:
                    shape = tuple(len(axes[dim]) for dim in variable.dims)
                    chunks = tuple(
                        min(size, n) if dim == item.by else n
                        for dim, n in zip(variable.dims, shape)
                    )
                    _array(home, variable, shape, chunks, variable.dims)
        return spans

    def finish_unit(self, name: str, at: tuple[int, ...] | int) -> None:
        """Mark a unit of a derivation as done."""
        with disk_errors(self.path):
            _get(_group(self.work, name), "done")[at] = 1

    def forget(self, name: str) -> None:
        """Mark every unit of a step or derivation as not done."""
        if name in self.work and "done" in self.work[name]:
            with disk_errors(self.path):
                _get(_group(self.work, name), "done")[...] = 0

    def read(self, name: str) -> np.ndarray:
        """A whole variable, kept or not."""
        home = self.root if name in self.root else self.hidden
        return np.asarray(_get(home, name)[...])

    def dataset(self) -> xr.Dataset:
        """The dataset as it is so far, lazily, with the variables that it does not show."""
        options = {"consolidated": False, "chunks": None}
        shown = xr.open_zarr(self.path, **options)
        hidden = xr.open_zarr(self.path, group=f"{WORK}/{HIDDEN}", **options)
        return shown.assign(hidden.data_vars)

    def mend(self, layout: Layout) -> list[str]:
        """Forget units of a step that cannot be read any more, so that they are done again.

        Returns
        -------
        list of str
            Which ones.
        """
        found, done = [], self.done(layout.name)
        for spans in layout.units():
            if done[spans.at] and not self._is_readable(layout, spans):
                _get(_group(self.work, layout.name), "done")[spans.at] = 0
                found.append(f"{layout.step.title}, unit {spans.key}")
        return found

    def _is_readable(self, layout: Layout, spans: Spans) -> bool:
        return all(
            self._is_whole(*self._part(layout, variable, spans))
            for variable in layout.step.gives
            if layout.is_written(variable, spans)
        )

    def readable(self, variable: Variable) -> bool:
        """Whether a whole variable is there and can be read."""
        home = self._home(variable)
        return variable.name in home and self._is_whole(home[variable.name])

    def _is_whole(self, array: Any, where: tuple[Any, ...] | None = None) -> bool:
        """Whether part of an array can be read, and none of it is fill for want of a chunk."""
        part = (slice(None),) * array.ndim if where is None else where
        files = (self.path / array.path / key for key in _chunk_keys(array, part))
        return all(file.is_file() for file in files) and readable(lambda: array[part])

    def finish(self, attributes: Mapping[str, Value]) -> None:
        """Add the last attributes, gather the metadata of all arrays, and mark the store complete.

        Attributes and metadata stand in an order that does not depend on when they were written.
        """
        with disk_errors(self.path):
            found = {**dict(self.root.attrs.asdict()), **attributes, "complete": 0}
            self.root.attrs.put({key: found[key] for key in sorted(found)})
            seal.make(self.root)
            consolidate(self.path, {"complete": 1})
            seal.close(self.path)

    @property
    def is_sealed(self) -> bool:
        """Whether what the finished store consists of is written down, see `seal`."""
        return seal.read(self.path) is not None

    def reopen(self) -> None:
        """Mark a complete store as one that is being written again."""
        with disk_errors(self.path):
            self.root.attrs["complete"] = 0

    def _home(self, variable: Variable) -> zarr.Group:
        return self.root if variable.shown else self.hidden

    def _note_coordinate(self, name: str) -> None:
        """Write down which arrays are coordinates, in an order that does not depend on when."""
        known = str(self.root.attrs.get("coordinates", "")).split()
        self.root.attrs["coordinates"] = " ".join(sorted({*known, name}))

    def _write(
        self,
        group: zarr.Group,
        name: str,
        dims: tuple[str, ...],
        values: np.ndarray,
        attributes: Mapping[str, str],
    ) -> None:
        text = values.dtype.kind in "OUT"
        variable = Variable(name, tuple(dims), "", dtype="str" if text else str(values.dtype))
        array = _array(group, variable, values.shape, values.shape, dims, attributes)
        array[...] = values


def consolidate(path: Path, last: Mapping[str, Value]) -> None:
    """Gather the metadata of all arrays in the root's, sorted by name.

    The root's attributes ``last`` are set in the same moment.
    """
    import warnings

    with warnings.catch_warnings():
        # Zarr v3 has not specified it yet; xarray and zarr both read it.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    file = path / "zarr.json"
    found = json.loads(file.read_text())
    inner = found["consolidated_metadata"]["metadata"]
    found["consolidated_metadata"]["metadata"] = {key: inner[key] for key in sorted(inner)}
    found["attributes"] |= last
    partial = path / "zarr.json.partial"
    partial.write_text(json.dumps(found, indent=2))
    partial.replace(file)


def _chunk_keys(array: Any, where: tuple[Any, ...]) -> Iterator[str]:
    """Names of the chunks that hold part of an array; ``where`` has a slice or a number a dim."""
    each = []
    for index, length, chunk in zip(where, array.shape, array.chunks):
        whole = index if isinstance(index, slice) else slice(index, index + 1)
        start, stop, _ = whole.indices(length)
        each.append(range(start // chunk, -(-stop // chunk)) if stop > start else range(0))
    for coordinates in itertools.product(*each):
        yield array.metadata.encode_chunk_key(coordinates)


def _done(work: zarr.Group, counts: tuple[int, ...], dims: list[str]) -> None:
    work.create_array(
        "done", shape=counts, chunks=tuple(1 for _ in counts), dtype="uint8", fill_value=0,
        dimension_names=dims,
    )  # fmt: skip


def _array(
    group: zarr.Group,
    variable: Variable,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dims: tuple[str, ...],
    attributes: Mapping[str, str] | None = None,
) -> zarr.Array:
    text = variable.dtype == "str"
    fill: Any = "" if text else np.zeros((), variable.dtype)[()]
    if not text and np.dtype(variable.dtype).kind == "f":
        fill = np.nan
    elif not text and np.dtype(variable.dtype).kind == "i":
        fill = -1
    return group.create_array(
        variable.name,
        shape=shape,
        chunks=tuple(max(c, 1) for c in chunks),
        dtype=str if text else variable.dtype,
        dimension_names=dims,
        fill_value=fill,
        attributes=dict(variable.attributes if attributes is None else attributes),
        compressors=(ZstdCodec(), Crc32cCodec()),
        # So that a chunk which is not there is one that was lost.
        config={"write_empty_chunks": True},
        overwrite=True,
    )


def _group(group: zarr.Group, name: str) -> zarr.Group:
    found = group[name]
    assert isinstance(found, zarr.Group)
    return found


def _get(group: zarr.Group, name: str) -> Any:
    """An array of a group, every chunk of which is written, one of NaN alone too.

    The store does not hold that setting: an array that is opened again has zarr's own.
    """
    return cast("zarr.Array", group[name]).with_config({"write_empty_chunks": True})


def readable(read: Callable[[], Any]) -> bool:
    """Whether something can be read."""
    try:
        read()
    except Exception:
        return False
    return True


def open_root(path: Path) -> zarr.Group:
    """The root group of a store, to be read.

    Raises
    ------
    ConfregError
        There is nothing, or something that is no confreg store, or one of another schema.
    """
    if not path.exists():
        raise ConfregError(f"There is no store {str(path)!r}; `confreg run` writes one.")
    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
        found = str(root.attrs[SCHEMA_ATTRIBUTE])
    except Exception:
        raise ConfregError(
            f"{str(path)!r} is not a confreg store (no Zarr group with the attribute "
            f"{SCHEMA_ATTRIBUTE!r}); nothing in it was touched."
        ) from None
    if found.split(".")[0] not in READS:
        raise ConfregError(
            f"The store {str(path)!r} has schema {found}; this confreg reads {VERSION}. "
            "Open it with the version of confreg named in its attribute 'confreg_version'."
        )
    return root


def is_store(path: Path) -> bool:
    """Whether there is a confreg store, of whatever schema."""
    try:
        return SCHEMA_ATTRIBUTE in zarr.open_group(path, mode="r").attrs
    except Exception:
        return False


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two configurations differ, in words; "" where in nothing."""
    now = json.loads(json.dumps(now))
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return "; ".join(_difference(key, before.get(key), now.get(key)) for key in keys)


def _difference(key: str, there: Any, now: Any) -> str:
    """What of a configuration is not the same, in words. Of digests the first digits tell."""
    if key.endswith("_sha256") and isinstance(there, str) and isinstance(now, str):
        return f"{key}: other contents, {there[:8]}... there, {now[:8]}... now"
    return f"{key}: {there!r} there, {now!r} now"


def configuration(path: Path) -> dict[str, Any]:
    """What a store was made by; empty where there is no store, or it does not say."""
    if not is_store(path):
        seal.restore(path)
    try:
        return json.loads(str(open_root(path).attrs[CONFIGURATION]))
    except (ConfregError, KeyError, ValueError):
        return {}


def is_blank(path: Path) -> bool:
    """Whether a store has no results yet: no unit of any step is done.

    Never one of another schema, whose marks lie elsewhere, or one that is finished.
    """
    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
        if root.attrs[SCHEMA_ATTRIBUTE] != VERSION or root.attrs["complete"]:
            return False
        work = root[WORK]
        steps = [group for _, group in cast("zarr.Group", work).groups()]
        done = [group["done"] for group in steps if "done" in group]
    except Exception:
        return False
    return not any(np.any(cast("zarr.Array", each)[...]) for each in done)


def remove(path: Path) -> None:
    """Delete a store, and nothing that is no store.

    Raises
    ------
    ConfregError
        The path exists and is no confreg store.
    """
    if not path.exists():
        return
    if not is_store(path):
        raise ConfregError(
            f"{str(path)!r} exists and is not a confreg store; it was left as it is. "
            "Choose another --out."
        )
    shutil.rmtree(path)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfregError(
                f"The disk of {str(path)!r} is full. What was finished is kept: free some space "
                "and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ConfregError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
        raise
