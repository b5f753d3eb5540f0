"""Opening what a run wrote, and writing it as one netCDF file."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

from confreg.errors import ConfregError
from confreg.results.watched import Watched
from confreg.sweep import seal
from confreg.sweep.store import ORDER, SCHEMA_ATTRIBUTE, disk_errors, open_root

LOOKED_THROUGH = 2**26
"""Bytes of a store up to which every file is looked through when it is opened. Of larger ones the
names are, and their chunks, by checksums, as they are read."""


def open(path: str | Path) -> xr.Dataset:
    """Open a store as a dataset, lazily, with its accessor ``ds.confreg``.

    Parameters
    ----------
    path : str or Path
        A Zarr directory that `confreg.run` wrote, or a netCDF file written from one; of a folder of
        such directories, as `confreg.run_each` writes it, all that are finished are opened, as an
        `xarray.DataTree`.

    Raises
    ------
    ConfregError
        There is no store at ``path``, or it has another schema version. Reading from the dataset
        raises it, too, once another store stands at ``path``.
    """
    from confreg.results import accessor  # noqa: F401  registers ds.confreg

    path = Path(path).expanduser()
    if path.is_file():
        return _tidy(_open_netcdf(path))
    from confreg import many

    if many.is_folder(path):
        tree: Any = many.open_folder(path)
        return tree
    root = open_root(path)
    try:
        _check_whole(path, root)
        found = xr.open_zarr(Watched(path), consolidated=False, chunks=None)
    except (ConfregError, Warning):
        raise
    except Exception as error:
        raise ConfregError(
            f"The store {str(path)!r} is damaged ({str(error).splitlines()[0]}). Run the command "
            "that made it again: it mends what it can."
        ) from error
    found = _tidy(found)
    found.encoding["source"] = str(path)  # as xarray does for files
    return found


def _check_whole(path: Path, root: zarr.Group) -> None:
    """Refuse a finished store that has lost files: what is not there would read as no number.

    Metadata that are not as they were written are warned of.
    """
    if not root.attrs.get("complete") or str(root.attrs[SCHEMA_ATTRIBUTE]).startswith("1."):
        return
    for name, array in root.arrays():
        lost = array.nchunks - array.nchunks_initialized
        if lost:
            raise ConfregError(
                f"{lost} of the {array.nchunks} chunks of {name!r} are missing in {str(path)!r}. "
                "Run the command that made it again: it computes what is missing."
            )
    changed = seal.damaged(path, deep=seal.size(path) <= LOOKED_THROUGH)
    said = f"{', '.join(changed[:3])} of {str(path)!r} not as the run wrote it"
    if any(not (path / name).is_file() or (path / name).name != seal.METADATA for name in changed):
        raise ConfregError(
            f"The store is damaged: {said}. Run the command that made it again: it computes what "
            "is missing."
        )
    if changed:
        warnings.warn(
            f"{said}: what the dataset says of its numbers may be wrong. Run the command that made "
            "it again: it puts that back.",
            stacklevel=3,
        )


def _open_netcdf(path: Path) -> xr.Dataset:
    try:
        ds = xr.open_dataset(path)
        masks = {
            name: array.astype(bool) for name, array in ds.coords.items() if array.dtype == "int8"
        }
        return ds.assign_coords(masks)
    except Exception:
        raise ConfregError(
            f"{str(path)!r} is neither a confreg store (a folder) nor netCDF written from one."
        ) from None


def write_netcdf(ds: xr.Dataset, path: str | Path) -> Path:
    """Write a dataset as one netCDF file, every coordinate included.

    Raises
    ------
    ConfregError
        netCDF4 is not installed, the run that writes the dataset is not finished, or the disk is
        full.
    """
    if not ds.attrs.get("complete", 1):
        raise ConfregError(
            "This dataset's run is not finished: run its command again, and export it then."
        )
    try:
        import netCDF4  # noqa: F401
    except ImportError:
        raise ConfregError("netCDF needs netCDF4: pip install netCDF4.") from None
    path = Path(path).expanduser()
    partial = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        ds.to_netcdf(partial, engine="netcdf4")
        partial.replace(path)
    return path


def _tidy(ds: xr.Dataset) -> xr.Dataset:
    """In the order of the plan, and text as plain str objects, which netCDF and pandas take."""
    order = str(ds.attrs.get(ORDER, "")).split()
    rank = {name: number for number, name in enumerate(order)}

    def ordered(names: Iterable[Hashable]) -> list[str]:
        return sorted(map(str, names), key=lambda name: (rank.get(name, len(rank)), name))

    def plain(name: str) -> xr.Variable:
        found = ds[name].variable
        return found.astype(object) if found.dtype.kind in "OUT" else found

    labels = {name: plain(name) for name in ordered(ds.coords)}
    variables = {name: plain(name) for name in ordered(ds.data_vars)}
    # Assigned, not selected: selecting would drop the labels of an axis that no variable has.
    return ds.drop_vars([*labels, *variables]).assign_coords(labels).assign(variables)


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
