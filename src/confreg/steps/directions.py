"""Any directions of the residual stream in place of neurons' output weights, from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from confreg.axes import Axis, Label, Spans, Variable
from confreg.errors import ConfregError
from confreg.steps.census import (
    coordinate_axis,
    place_axis,
    token_texts,
    vocabulary_effort,
    vocabulary_variables,
)
from confreg.steps.weights import (
    chance_of_null_fraction,
    component_axis,
    null_space_variables,
    weights,
)
from confreg.sweep.budget import Budget
from confreg.sweep.step import Item, Step

if TYPE_CHECKING:
    from confreg.effects import Directions, Space
    from confreg.study import Study


def directions(study: Study, file: str) -> Axis:
    """Rows of a file as the axis ``direction``; its entries are arrays (n, d) float32.

    Parameters
    ----------
    study : Study
    file : str
        A .npy file of an array (n, d), or a .safetensors file with such a tensor; of several
        ``FILE:NAME`` says which.

    Raises
    ------
    ConfregError
        No such file or tensor, or rows of another length than the model's residual stream.
    """
    rows = read(file, study.model.about.d_model)
    names = np.array([str(number) for number in range(len(rows))], dtype=object)
    label = Label(names, f"row of {Path(file).name}", kind="subject")
    return Axis("direction", {"direction": label}, lambda start, stop: rows[start:stop])


def read(file: str, width: int) -> np.ndarray:
    """The rows of a file, (n, width) float32; parameters and errors as of `directions`."""
    path, wanted = Path(file).expanduser(), ""
    if not path.is_file() and ":" in file:
        before, wanted = file.rsplit(":", 1)
        path = Path(before).expanduser()
    if not path.is_file():
        raise ConfregError(f"There is no file {file!r} to read directions from.")
    try:
        rows = _of_safetensors(path, wanted, width) if _is_safetensors(path) else np.load(path)
    except ConfregError:
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfregError(
            f"{str(path)!r} is read neither as .npy nor as .safetensors: {said}"
        ) from error
    shape = tuple(np.shape(rows))
    if len(shape) != 2 or shape[1] != width or not shape[0] or rows.dtype.kind != "f":
        hint = " Transpose it." if len(shape) == 2 and shape[0] == width else ""
        raise ConfregError(
            f"{str(path)!r} holds numbers ({rows.dtype}) of shape {shape}; directions are rows of "
            f"{width} numbers each, as wide as the model's residual stream.{hint}"
        )
    rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        raise ConfregError(f"{str(path)!r} holds numbers that are not finite.")
    return rows


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _of_safetensors(path: Path, wanted: str, width: int) -> np.ndarray:
    from safetensors.torch import load_file

    tensors = load_file(path)
    fitting = [n for n, t in tensors.items() if t.dim() == 2 and t.shape[1] == width]
    if wanted and wanted not in tensors:
        raise ConfregError(f"{str(path)!r} has no tensor {wanted!r}; it has {', '.join(tensors)}.")
    if not wanted and len(fitting) != 1:
        raise ConfregError(
            f"{str(path)!r} has {len(fitting)} tensors with rows of {width}; say which as "
            f"{path}:NAME, of {', '.join(tensors)}."
        )
    return tensors[wanted or fitting[0]].float().numpy()


def of_directions(
    study: Study,
    axis: Axis,
    null_dims: int | None = None,
    top: int = 10,
    centre_vocabulary: bool = True,
) -> list[Item]:
    """What `null_space` and `vocabulary_statistics` give of neurons, of directions.

    Each is taken as an output weight that reaches the final norm as it is. Parameters are theirs.
    """
    import torch

    from confreg.effects import Directions, Space

    about, memory = study.model.about, study.budget.memory
    norm, share, spectrum, dims = null_space_variables(axis)
    place, owned = place_axis(study, top), torch.from_numpy(about.owned)
    rows = axis.entries(0, len(axis))
    coordinate = coordinate_axis(about.d_model, kept=False)

    def space(spans: Spans, stored: Mapping[str, np.ndarray]) -> Space:
        return Space(study.two_tokens, owned, null_dims, memory, centre_vocabulary)

    def unit(spans: Spans, stored: Mapping[str, np.ndarray]) -> Directions:
        start, stop = spans.bounds[axis.name]
        bottom = stored["right_vector"][-int(stored["null_dims"]) :]
        return Directions(
            study.two_tokens, torch.from_numpy(rows[start:stop].copy()),
            torch.from_numpy(bottom.copy()), owned, memory, centre_vocabulary, len(place),
        )  # fmt: skip

    def most(budget: Budget) -> dict[str, int]:
        each = 4 * about.d_model
        room = memory // (8 * each) if budget.upload is None else budget.upload // (2 * each)
        return {axis.name: max(1, min(8 * about.d_model, room))}

    first = Step(
        weights,
        over=(),
        along=(component_axis(about.d_model), coordinate),
        unit=space,
        cost=lambda spans: 0,
        name="null space of the unembedding",
        attributes={
            "centre_vocabulary": int(centre_vocabulary),
            "directions_sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        },
        gives=(
            spectrum, dims,
            Variable("right_vector", ("component", "coordinate"), "right singular vector",
                     kept=False),
        ),
    )  # fmt: skip
    second = Step(
        weights,
        over=(axis,),
        along=(place,),
        unit=unit,
        needs=(first,),
        most=most,
        cost=lambda spans: 0,
        name="moments over the vocabulary",
        effort=vocabulary_effort(study, len(axis)),
        gives=(norm, share, *vocabulary_variables(axis)),
    )
    chance = chance_of_null_fraction(about.d_model, len(axis))
    return [first, chance, second, token_texts(study, axis)]
