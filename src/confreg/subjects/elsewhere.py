"""Neurons that a file names, or that an earlier run found: the rest of ``--neurons``.

>>> expand("@best.txt;runs/a.zarr:top:20:te_mediated", network)
'11.584,11.2378;11.584,11.9'
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg import earlier
from confreg.errors import ConfregError
from confreg.subjects import routing
from confreg.subjects.neurons import Neurons, choose

if TYPE_CHECKING:
    from confreg.models import Description
    from confreg.models.network import Network

STORE = re.compile(r"(?P<path>.+?):(?P<end>top|bottom):(?P<count>[^:]*)(?::(?P<by>.*))?")
TABLES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")


def expand(spec: str, network: Network) -> str:
    """A specification with every part that names a file or a store written out as neurons.

    ``@FILE`` stands for the neurons of a file: a table (.csv, .tsv, .parquet, .jsonl, each also as
    .gz or .zst) with the columns ``layer`` and ``index``, or lines of the usual grammar, in which
    ``#`` begins a comment. ``STORE:top:N:VARIABLE`` (or ``bottom``) stands for the N neurons that
    have the largest (smallest) values in a finished store of the same model; without VARIABLE by
    what ``confreg show`` ranks by.

    Raises
    ------
    ConfregError
        A file that is not there, a line that names no neuron, a store of another model, a variable
        that it lacks.
    """
    return ";".join(
        ",".join(_expanded(part.strip(), network) for part in each.split(","))
        for each in spec.split(";")
    )


def _expanded(part: str, network: Network) -> str:
    if part.startswith("@"):
        found = of_file(part[1:], network.about)
    elif routing.asked(part):
        return part
    elif match := STORE.fullmatch(part):
        found = of_store(part, match, network)
    else:
        return part
    return ",".join(found.names.tolist())


def of_file(name: str, model: Description) -> Neurons:
    """The neurons of a file, see `expand`."""
    from confreg.tokens import records

    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfregError(f"--neurons @{name}: there is no such file.")
    if records.suffix(path) not in TABLES:
        return _of_lines(path, model)
    pairs = [_pair(where, record, model) for where, record in records.of_file(path)]
    if not pairs:
        raise ConfregError(f"--neurons @{name}: the file names no neuron.")
    return _sorted(np.array(pairs, dtype=np.int64), model)


def _of_lines(path: Path, model: Description) -> Neurons:
    from confreg.tokens import records

    ((_, record),) = records.of_file(path)
    pairs: list[tuple[int, int]] = []
    for number, line in enumerate(record["text"].split("\n"), start=1):
        said = line.partition("#")[0].strip()
        if not said:
            continue
        where = f"line {number} of {str(path)!r}"
        if said == "all" or "random:" in said or routing.asked(said):
            raise ConfregError(f"--neurons: {where} names no neurons of its own: {said!r}.")
        try:
            found = choose(said, -1, model.n_layers, model.n_neurons, 0, model.banks)
        except ConfregError as error:
            raise ConfregError(f"--neurons: {where}: {_bare(error)}") from error
        pairs += zip(found.layer.tolist(), found.index.tolist())
    if not pairs:
        raise ConfregError(f"--neurons @{path}: the file names no neuron.")
    return _sorted(np.array(pairs, dtype=np.int64), model)


def _bare(error: ConfregError) -> str:
    return str(error).removeprefix("--neurons").lstrip(": ")


def _pair(where: str, record: Any, model: Description) -> tuple[int, int]:
    for field in ("layer", "index"):
        if field not in record:
            known = ", ".join(map(repr, record)) or "nothing"
            raise ConfregError(f"--neurons: {where} has no field {field!r}; it has {known}.")
    layer, index = (_whole(where, field, record[field]) for field in ("layer", "index"))
    there = 0 <= layer < model.n_layers
    if not there or not 0 <= index < model.width(layer):
        width = model.width(layer) if there else model.n_neurons
        raise ConfregError(
            f"--neurons: {where} names neuron {layer}.{index}, and this model has layers 0 to "
            f"{model.n_layers - 1} with neurons 0 to {width - 1}."
        )
    return layer, index


def _whole(where: str, field: str, value: Any) -> int:
    try:
        number = float(value)
        if number == int(number):
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfregError(f"--neurons: {where}: {field} is {value!r}, not a whole number.")


def of_store(part: str, match: re.Match[str], network: Network) -> Neurons:
    """The first of the neurons of a store, by one of its variables."""
    from confreg.results import accessor  # noqa: F401  registers ds.confreg

    if not re.fullmatch(r"[1-9]\d*", match["count"]):
        raise ConfregError(
            f"--neurons {part}: {match['count']!r} is no number of neurons; write "
            "STORE:top:20:te_mediated."
        )
    count, ds = int(match["count"]), earlier.of_model(match["path"], network)
    if "neuron" not in ds.dims or "layer" not in ds.coords:
        raise ConfregError(f"--neurons {part}: the store has no neurons.")
    try:
        frame = ds.confreg.top(match["by"], ds.sizes["neuron"], match["end"] == "bottom", "neuron")
    except ConfregError as error:
        raise ConfregError(f"--neurons {part}: {error}") from error
    from confreg.results import tables

    frame = frame[frame[match["by"] or tables.rank_by(frame)].notna()]
    if len(frame) < count:
        raise ConfregError(f"--neurons {part}: the store has {len(frame)} neurons with that value.")
    chosen = ds["neuron"].to_index().get_indexer(frame.index[:count])
    pairs = np.stack([ds["layer"].values[chosen], ds["index"].values[chosen]], axis=1)
    return _sorted(pairs.astype(np.int64), network.about)


def _sorted(pairs: np.ndarray, model: Description) -> Neurons:
    """Each once, by layer and index."""
    pairs = np.unique(pairs, axis=0)
    return Neurons(pairs[:, 0], pairs[:, 1], model.banks)
