"""One recipe on several models: a store each, and the stores together.

>>> tree = confreg.run_each("census", ["lab/a", "lab/b@step1000"], out="runs/atlas")
>>> tree["a"]["role"]
>>> confreg.along_models(tree)["null_fraction"].max("neuron")
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.errors import ConfregError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

FAILED = "failed.txt"
"""The file of a folder that says which models failed last, and why."""


def run_each(recipe: Any, models: Sequence[Any], out: str | Path, **given: Any) -> xr.DataTree:
    """Run a recipe on each of several models, into one store a model.

    A model that fails does not stop the others; a run into a folder that is there goes on with what
    is not finished.

    Parameters
    ----------
    recipe, **given
        As of `confreg.run`.
    models : sequence
        As ``model`` of `confreg.run`.
    out : str or Path
        The folder; a model's store in it is named after the model.

    Returns
    -------
    xarray.DataTree
        As `open_folder`.

    Raises
    ------
    ConfregError
        Two models have one name; or some failed, with each one's sentence, once all were tried.
    """
    from confreg.api import local_path, run

    folder = local_path(out)
    names = [node(model) for model in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfregError(f"Two models would be written as {min(twice)!r}: name each once.")
    if not names:
        raise ConfregError("run_each needs a model.")
    failed = {}
    for name, model in zip(names, models):
        try:
            run(recipe, model=model, out=folder / f"{name}.zarr", **given)
        except ConfregError as error:
            failed[name] = str(error)
            if given.get("progress", True):
                print(f"confreg: {name}: {error} The others go on.", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / FAILED
    if not failed:
        note.unlink(missing_ok=True)
        return open_folder(folder)
    note.write_text("".join(f"{name}: {said}\n" for name, said in failed.items()))
    raise ConfregError(
        f"{len(failed)} of {len(names)} models failed, the others are in {str(folder)!r}: "
        + " ".join(f"{name}: {said}" for name, said in failed.items())
    )


def node(model: Any) -> str:
    """What a model's store and node are called: its name, without what file systems and paths mind.

    ``EleutherAI/pythia-160m@step1000`` is ``EleutherAI--pythia-160m@step1000``; a folder is its own
    name.
    """
    text = str(getattr(model, "name", model))
    if Path(text).expanduser().exists():
        text = Path(text).expanduser().resolve().name
    return re.sub(r"[^\w.@+-]", "-", text.replace("/", "--")) or "model"


def is_folder(path: Path) -> bool:
    """Whether a folder holds stores, and is none itself."""
    from confreg.sweep.store import is_store

    return path.is_dir() and not is_store(path) and any(path.glob("*.zarr"))


def open_folder(path: str | Path) -> xr.DataTree:
    """The finished stores of a folder as one tree, a node each, lazily.

    The attribute ``unfinished`` names those that are not finished, or are damaged.

    Raises
    ------
    ConfregError
        No store in the folder is finished.
    """
    import xarray as xr

    from confreg.results.open import open

    folder = Path(path).expanduser()
    found, left = {}, []
    for store in sorted(folder.glob("*.zarr")):
        try:
            ds = open(store)
        except ConfregError:
            left.append(store.stem)
            continue
        if ds.attrs.get("complete", 1):
            found[store.stem] = ds
        else:
            left.append(store.stem)
    if not found:
        raise ConfregError(f"No store in {str(folder)!r} is finished.")
    tree = xr.DataTree.from_dict(found, name=folder.name)
    tree.attrs = {"unfinished": ", ".join(left)}
    return tree


def along_models(tree: xr.DataTree) -> xr.Dataset:
    """What the models of a tree have in common, along the new dimension ``model``.

    Variables of numbers and words whose other dims have the same labels in every model. The
    attribute ``left_out`` names those of the first model that are not.

    Raises
    ------
    ConfregError
        Nothing is common to all.
    """
    import xarray as xr

    names, sets = list(tree.children), [node.to_dataset() for node in tree.children.values()]
    first, others = sets[0], sets[1:]
    common, left = [], []
    for name, array in first.data_vars.items():
        same = all(
            name in ds.data_vars and ds[name].dims == array.dims
            and all(_same_labels(first, ds, str(dim)) for dim in array.dims)
            for ds in others
        )  # fmt: skip
        (common if same else left).append(str(name))
    if not common:
        raise ConfregError(
            "The models have no variable of one shape in common: take them one by one from the "
            "tree."
        )
    model = xr.Variable("model", np.array(names, dtype=object), {"long_name": "model"})
    # Attributes are of one run, and another has others.
    bare = [ds[common].drop_attrs(deep=False) for ds in sets]
    found = xr.concat(
        bare, dim="model", coords="minimal", compat="override", join="exact",
        combine_attrs="override",
    )  # fmt: skip
    found = found.assign_coords(model=model)
    found.attrs = {"recipe": first.attrs.get("recipe", ""), "left_out": ", ".join(left)}
    return found


def _same_labels(first: xr.Dataset, other: xr.Dataset, dim: str) -> bool:
    if first.sizes[dim] != other.sizes.get(dim):
        return False
    if dim not in first.coords or dim not in other.coords:
        return dim not in first.coords and dim not in other.coords
    return bool(np.array_equal(first[dim].values, other[dim].values))


def table(tree: xr.DataTree) -> pd.DataFrame:
    """The tables of all models, one below the other: a row a neuron, its model and layer too.

    Columns that a model has not are empty for it.
    """
    import pandas as pd

    from confreg.results import axes, tables

    frames = []
    for name, child in tree.children.items():
        ds = child.to_dataset()
        dim = axes.main_subject(ds)
        if dim is None:
            continue
        frame = tables.table(ds, dim).reset_index()
        labels = {
            str(label): values.values for label, values in ds.coords.items()
            if values.dims == (dim,) and label != dim and label not in frame
        }  # fmt: skip
        for at, (label, values) in enumerate(labels.items()):
            frame.insert(1 + at, label, values)
        frame.insert(0, "model", name)
        frames.append(frame)
    if not frames:
        raise ConfregError("No store of the folder is about neurons or the like.")
    return pd.concat(frames, ignore_index=True)


def write_parquet(tree: xr.DataTree, path: str | Path) -> Path:
    """Write the tables of all models as one Parquet file.

    Raises
    ------
    ConfregError
        pyarrow is not installed, or no store is about neurons or the like.
    """
    from confreg.sweep.store import disk_errors

    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ConfregError("Parquet needs pyarrow: pip install pyarrow.") from None
    path = Path(path).expanduser()
    frame = table(tree)
    with disk_errors(path):
        frame.to_parquet(path, index=False)
    return path
