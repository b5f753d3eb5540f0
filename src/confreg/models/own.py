"""Rows of a user's own: TOML files in a folder, and installed packages' entry points.

Such a row comes before the table's and before a derived one, and no test covers it: it is verified
on the checkpoint whenever something is measured.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ConfigDict, ValidationError

from confreg.errors import ConfregError
from confreg.models.architectures import Architecture
from confreg.models.families import ARCHITECTURES

GROUP = "confreg.architectures"


NONE_BY_DEFAULT = [field.name for field in fields(Architecture) if field.default is None]


class Row(BaseModel):
    """A row as a TOML file says it: what is not given is as in the family that it is ``like``.

    An empty path, or name of an attribute, says that there is no such thing. Numbers may be
    written as such, or as the name of the configuration's attribute that holds them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: str
    title: str | None = None
    like: str | None = None
    layers: str | None = None
    down_projection: str | None = None
    up: str | None = None
    gate: str | None = None
    norm_before: str | None = None
    attention_out: str | None = None
    final_norm: str | None = None
    unembedding: str | None = None
    post_norm: str | None = None
    scaled_sum: str | None = None
    centred: bool | None = None
    eps: str | float | None = None
    width: str | int | None = None
    scale: str | float | None = None
    multiplier: str | float | None = None
    softcap: str | None = None
    no_heads: str | None = None

    def architecture(self, origin: str) -> Architecture:
        """The row, from a family's or from nothing.

        Raises
        ------
        ConfregError
            There is no such family, or what every row needs is not given.
        """
        said = self.model_dump(exclude_none=True, exclude={"like"})
        base: dict[str, Any] = {"title": self.model_type}
        if self.like is not None:
            if self.like not in ARCHITECTURES:
                raise ConfregError(
                    f"{origin}: there is no architecture {self.like!r} to be like; `confreg "
                    "models` lists those that there are."
                )
            base |= vars(ARCHITECTURES[self.like]) | {"also": (), "title": self.model_type}
        if "no_heads" in said:
            base["attention_out"] = None
        made: dict[str, Any] = base | said | {"origin": origin}
        made |= {name: None for name in NONE_BY_DEFAULT if made.get(name) == ""}
        needed = ("layers", "down_projection", "final_norm", "centred", "eps")
        if missing := [name for name in needed if name not in made]:
            raise ConfregError(
                f"{origin} does not say {', '.join(missing)}, and is like no family."
            )
        return Architecture(**made)


def folder() -> Path:
    """Where a user's rows are: ``$CONFREG_ARCHITECTURES``, or in the user's configuration."""
    own = os.environ.get("CONFREG_ARCHITECTURES")
    return Path(own) if own else platformdirs.user_config_path("confreg") / "architectures"


def rows() -> dict[str, Architecture]:
    """Every row of the user's own, by transformers' name; a file comes before a package.

    Raises
    ------
    ConfregError
        A file that is no row, or a package that does not load.
    """
    found = {}
    for row in (*_installed(), *_written()):
        found[row.model_type] = row
    return found


def _written() -> Iterator[Architecture]:
    for file in sorted(folder().glob("*.toml")):
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
            yield Row.model_validate(values).architecture(str(file))
        except ValidationError as error:
            first = error.errors()[0]
            where = str(first["loc"][0])
            if first["type"] != "missing":
                where += f" = {first['input']!r}"
            raise ConfregError(f"{file}: {where}: {first['msg']}.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfregError(f"{file} is not valid TOML: {error}.") from None


def _installed() -> Iterator[Architecture]:
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist is not None else "?"
        try:
            found = entry.load()
        except Exception as error:
            raise ConfregError(
                f"The entry point {entry.name!r} of the package {package} does not load: "
                f"{type(error).__name__}: {error}. Mend the package, or uninstall it."
            ) from error
        for row in found if isinstance(found, list | tuple) else [found]:
            if not isinstance(row, Architecture):
                raise ConfregError(
                    f"The entry point {entry.name!r} of the package {package} gives {row!r}, where "
                    "a confreg.models.Architecture, or a list of them, is wanted."
                )
            yield replace(row, origin=f"package {package}")
