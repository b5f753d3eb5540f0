"""The Zarr directory that a run writes, and resumes.

The root group is the dataset. Beside it, the group ``work`` says what is finished: a done
mask with one flag a unit of work (written after the unit's data), and what each unit adds to
the reductions. Nothing in the store depends on the clock, so that a run which was killed and
started again ends with the same bytes as one which was not.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from confreg.errors import ConfregError
from confreg.results import schema

SCHEMA_ATTRIBUTE = "confreg_schema"
CONFIGURATION = "configuration"
Chunks = Sequence[tuple[int, int]]


class Store:
    """A store that is being written.

    Use `Store.create` or `Store.resume`.

    Attributes
    ----------
    path : Path
    root, work : zarr.Group
    neurons, tokens : list of (start, stop)
        The units of work along each dimension.
    variables : list of str
        What every unit fills; the other variables are written at once.
    sums : list of str
        What every unit adds to the reductions.
    subject : str
        The dimension of what is ablated, along which ``neurons`` are units.
    """

    def __init__(self, path: Path, root: zarr.Group) -> None:
        self.path = path
        self.root = root
        self.work = _group(root, "work")
        self.neurons = [tuple(c) for c in json.loads(str(self.work.attrs["neuron_units"]))]
        self.tokens = [tuple(c) for c in json.loads(str(self.work.attrs["token_units"]))]
        self.variables: list[str] = json.loads(str(self.work.attrs["variables"]))
        usual = json.dumps(["abs_sum", "sum"])  # of stores that were begun before others had more
        self.sums: list[str] = json.loads(str(self.work.attrs.get("sums", usual)))
        self.subject = str(self.work.attrs["subject"])

    @classmethod
    def create(
        cls,
        path: Path,
        coordinates: xr.Dataset,
        configuration: Mapping[str, Any],
        attributes: Mapping[str, str | int | float],
        neurons: Chunks,
        tokens: Chunks,
        variables: Sequence[str],
        sums: Mapping[str, str],
        subject: str = "neuron",
        known: Mapping[str, np.ndarray] | None = None,
    ) -> Store:
        """Lay out an empty store: coordinates, attributes, arrays without data.

        ``variables`` are what every unit of work fills, beside the reductions, to which it adds
        ``sums``: names, and the dimension of each beside ``subject``, that of what is ablated,
        along which ``neurons`` are the units. ``known`` are variables that are there already,
        such as those from which the labels were found.

        Built under another name and moved into place whole, so that a store either is one
        or is not there.
        """
        building = path.with_name(f".{path.name}.building")
        with disk_errors(path):
            shutil.rmtree(building, ignore_errors=True)
            building.parent.mkdir(parents=True, exist_ok=True)
            coordinates.to_zarr(building, mode="w", zarr_format=3, consolidated=False)
            root = zarr.open_group(building, mode="r+")
            _lay_out(root, coordinates, neurons, tokens, variables, sums, subject)
            for name, values in (known or {}).items():
                _put(root, schema.variable(name).over(subject), values)
            root.attrs.update(
                {
                    SCHEMA_ATTRIBUTE: schema.VERSION,
                    CONFIGURATION: json.dumps(configuration, sort_keys=True),
                    "complete": 0,
                    **attributes,
                }
            )
            building.rename(path)
        return cls(path, zarr.open_group(path, mode="r+"))

    @classmethod
    def resume(cls, path: Path, configuration: Mapping[str, Any]) -> Store:
        """Open a store to go on with it.

        Raises
        ------
        ConfregError
            It is no store, of another schema, or made by another configuration.
        """
        root = open_root(path, mode="r+")
        before = json.loads(str(root.attrs[CONFIGURATION]))
        now = json.loads(json.dumps(configuration))
        changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
        if changed:
            said = "; ".join(f"{k}: {before.get(k)!r} there, {now.get(k)!r} now" for k in changed)
            raise ConfregError(
                f"The store {str(path)!r} was made by another configuration ({said}). "
                "Write to another --out, or replace it with --overwrite."
            )
        for left in path.rglob("*.partial"):  # a write that was killed
            left.unlink(missing_ok=True)
        return cls(path, root)

    @property
    def complete(self) -> bool:
        """Whether the run that writes this store has ended."""
        return bool(self.root.attrs["complete"])

    def has(self, name: str) -> bool:
        """Whether a variable has been written."""
        return name in self.root

    def readable(self, name: str) -> bool:
        """Whether a variable has been written and is not damaged."""
        return self.has(name) and _readable(lambda: self.read(name))

    def read(self, name: str) -> np.ndarray:
        """A whole variable."""
        return np.asarray(_get(self.root, name)[...])

    def write(self, name: str, values: np.ndarray) -> None:
        """Write a whole (small) variable, checked against the schema."""
        row = schema.variable(name).over(self.subject)
        schema.check(name, row.dims, values.dtype)
        with disk_errors(self.path):
            if values.dtype.kind in "OUT":
                array = xr.DataArray(values.astype(object), dims=row.dims, attrs=row.attributes)
                array.to_dataset(name=name).to_zarr(
                    self.path, mode="a", zarr_format=3, consolidated=False
                )
                return
            _put(self.root, row, values)

    def done(self) -> np.ndarray:
        """The done mask, (neuron units, token units) of bool."""
        return np.asarray(_get(self.work, "done")[...], dtype=bool)

    def mend(self) -> list[str]:
        """Forget what cannot be read any more, so that it is computed again.

        Returns
        -------
        list of str
            What was forgotten: units and variables.
        """
        found = []
        for i, j in zip(*self.done().nonzero()):
            if not _readable(lambda i=int(i), j=int(j): self._read_unit(i, j)):
                _get(self.work, "done")[i, j] = 0
                found.append(f"unit {i}.{j}")
        for name, array in list(self.root.arrays()):
            whole = name not in self.variables and not schema.TABLE[name].coordinate
            if whole and not _readable(lambda array=array: array[...]):
                del self.root[name]
                found.append(name)
        if found:
            self.root.attrs["complete"] = 0
        return found

    def _read_unit(self, i: int, j: int) -> None:
        n0, n1 = self.neurons[i]
        for name in self.variables:
            array, where = self._part(name, i, j)
            array[where]
        for name in self.sums:
            _get(self.work, name)[j, n0:n1]
        _get(self.work, "measured")[i, j]

    def write_unit(self, i: int, j: int, block: Mapping[str, np.ndarray]) -> None:
        """Write one unit of work, then its done flag.

        Parameters
        ----------
        i, j : int
            Which neuron unit and token unit.
        block : mapping of str to array
            What a recipe's trace returned for the unit.
        """
        n0, n1 = self.neurons[i]
        with disk_errors(self.path):
            for name in self.variables:
                array, where = self._part(name, i, j)
                if i == 0 or self.subject in array.metadata.dimension_names:
                    array[where] = block[name]
            for name in self.sums:
                _get(self.work, name)[j, n0:n1] = block[name]
            _get(self.work, "measured")[i, j] = [block[k] for k in MEASURED]
            _get(self.work, "done")[i, j] = 1

    def _part(self, name: str, i: int, j: int) -> tuple[Any, tuple[slice, ...]]:
        spans = {self.subject: slice(*self.neurons[i]), "token": slice(*self.tokens[j])}
        array = _get(self.root, name)
        dims = array.metadata.dimension_names
        return array, tuple(spans.get(dim, slice(None)) for dim in dims)

    def measured(self) -> dict[str, float]:
        """Totals over all units: pairs, how many were recomputed, and the measured error."""
        table = np.asarray(_get(self.work, "measured")[...]).reshape(-1, len(MEASURED))
        total: dict[str, float] = dict(zip(MEASURED, np.nansum(table, axis=0).tolist()))
        total["error_max"] = float(np.nanmax(table[:, MEASURED.index("error_max")]))
        return total

    def total(self, name: str) -> np.ndarray:
        """One of `sums` over all kept tokens, (subject, its dimension) float64."""
        return np.asarray(_get(self.work, name)[...]).sum(axis=0)

    def note(self, key: str, value: str | int | float) -> None:
        """Set an attribute of the dataset."""
        with disk_errors(self.path):
            self.root.attrs[key] = value

    def finish(self, attributes: Mapping[str, str | int | float]) -> None:
        """Set the last attributes and mark the store complete."""
        with disk_errors(self.path):
            self.root.attrs.update({**attributes, "complete": 1})


MEASURED = ("pairs", "recomputed", "sampled", "error_sum", "error_max")
"""What closed-form engines report of themselves for a unit, in the order of ``work/measured``."""


def _readable(read: Callable[[], Any]) -> bool:
    try:
        read()
    except Exception:
        return False
    return True


def _lay_out(
    root: zarr.Group,
    coordinates: xr.Dataset,
    neurons: Chunks,
    tokens: Chunks,
    variables: Sequence[str],
    sums: Mapping[str, str],
    subject: str,
) -> None:
    n = coordinates.sizes[subject]
    cn, ct = (max(stop - start for start, stop in chunks) for chunks in (neurons, tokens))
    chunk = {**coordinates.sizes, subject: cn, "token": ct}
    for name in variables:
        row = schema.variable(name).over(subject)
        _array(root, row, *(tuple(of[d] for d in row.dims) for of in (coordinates.sizes, chunk)))
    work = root.create_group("work")
    units = (len(neurons), len(tokens))
    work.create_array("done", shape=units, chunks=(1, 1), dtype="uint8", fill_value=0)
    for name, dim in sums.items():
        width = coordinates.sizes[dim]
        work.create_array(
            name, shape=(units[1], n, width), chunks=(1, cn, width), dtype="float64", fill_value=0
        )
    work.create_array(
        "measured", shape=(*units, len(MEASURED)), chunks=(1, 1, len(MEASURED)),
        dtype="float64", fill_value=0,
    )  # fmt: skip
    work.attrs.update(
        {
            "neuron_units": json.dumps(neurons),
            "token_units": json.dumps(tokens),
            "variables": json.dumps(list(variables)),
            "sums": json.dumps(list(sums)),
            "subject": subject,
        }
    )


def _put(group: zarr.Group, row: schema.Variable, values: np.ndarray) -> None:
    _array(group, row, values.shape, values.shape)[...] = values


def _array(
    group: zarr.Group, row: schema.Variable, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> zarr.Array:
    fill = np.nan if row.dtype.startswith("float") else False if row.dtype == "bool" else -1
    return group.create_array(
        row.name,
        shape=shape,
        chunks=tuple(max(c, 1) for c in chunks),
        dtype=row.dtype,
        dimension_names=row.dims,
        fill_value=fill,
        attributes=dict(row.attributes),
        overwrite=True,
    )


def _group(group: zarr.Group, name: str) -> zarr.Group:
    found = group[name]
    assert isinstance(found, zarr.Group)
    return found


def _get(group: zarr.Group, name: str) -> Any:
    return group[name]


def open_root(path: Path, mode: Any = "r") -> zarr.Group:
    """The root group of a store.

    Raises
    ------
    ConfregError
        There is nothing, or something that is no confreg store, or one of another schema.
    """
    if not path.exists():
        raise ConfregError(f"There is no store {str(path)!r}; `confreg run` writes one.")
    try:
        root = zarr.open_group(path, mode=mode)
        found = str(root.attrs[SCHEMA_ATTRIBUTE])
    except Exception:
        raise ConfregError(
            f"{str(path)!r} is not a confreg store (no Zarr group with the attribute "
            f"{SCHEMA_ATTRIBUTE!r}); nothing in it was touched."
        ) from None
    if found.split(".")[0] != schema.VERSION.split(".")[0]:
        raise ConfregError(
            f"The store {str(path)!r} has schema {found}; this confreg reads {schema.VERSION}. "
            "Open it with the version of confreg named in its attribute 'confreg_version'."
        )
    return root


def is_store(path: Path) -> bool:
    """Whether there is a confreg store, of whatever schema."""
    try:
        return SCHEMA_ATTRIBUTE in zarr.open_group(path, mode="r").attrs
    except Exception:
        return False


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


def open(path: str | Path) -> xr.Dataset:
    """Open a store as a dataset, lazily, with its accessor ``ds.confreg``.

    Parameters
    ----------
    path : str or Path
        A Zarr directory that `confreg.run` wrote, or a netCDF file written from one.

    Raises
    ------
    ConfregError
        There is no store at ``path``, or it has another schema version.
    """
    from confreg.results import accessor  # noqa: F401  registers ds.confreg

    path = Path(path).expanduser()
    if path.is_file():
        return _tidy(_open_netcdf(path))
    open_root(path)
    return _tidy(xr.open_zarr(path, consolidated=False, chunks=None))


def _open_netcdf(path: Path) -> xr.Dataset:
    try:
        ds = xr.open_dataset(path)
        return ds.assign_coords(keep=ds["keep"].astype(bool))
    except Exception:
        raise ConfregError(
            f"{str(path)!r} is neither a confreg store (a folder) nor netCDF written from one."
        ) from None


def write_netcdf(ds: xr.Dataset, path: str | Path) -> Path:
    """Write a dataset as one netCDF file, every coordinate included.

    Raises
    ------
    ConfregError
        netCDF4 is not installed, or the disk is full.
    """
    try:
        import netCDF4  # noqa: F401
    except ImportError:
        raise ConfregError("netCDF needs netCDF4: pip install 'confreg[netcdf]'.") from None
    path = Path(path).expanduser()
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        ds.to_netcdf(partial, engine="netcdf4")
        partial.replace(path)
    return path


def _tidy(ds: xr.Dataset) -> xr.Dataset:
    # In the order of the schema, and text as plain str objects, which netCDF and pandas take.
    order = [name for name in schema.TABLE if name in ds.variables]
    text = {
        name: ds[name].astype(object)
        for name in order
        if schema.TABLE[name].dtype == "str" and name in ds.coords
    }
    return ds.assign_coords(text)[[n for n in order if n in ds.data_vars]]


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn unreadable chunks into a sentence."""
    try:
        yield
    except (ConfregError, KeyError):
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfregError(
            f"A chunk of {str(path)!r} cannot be read ({type(error).__name__}): the store is "
            "damaged. Run the command that made it again: it computes what is missing."
        ) from error
