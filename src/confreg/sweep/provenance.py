"""Where a dataset comes from: what computed it, and how it was asked for."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import confreg
from confreg.options import Options

LIBRARIES = ("nnsight", "torch", "transformers", "accelerate", "zarr", "xarray")


COMPUTING = ("kernels", "flash-linear-attention", "causal-conv1d", "mamba-ssm")
"""What transformers computes with where it is installed, without being asked."""


def computing(also: tuple[str, ...] = ()) -> str:
    """Which of the optional libraries that may change a forward are here, with versions."""
    found = []
    for name in (*COMPUTING, *also):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def versions() -> dict[str, str]:
    """Versions of what computes, by library; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def attributes(
    recipe: str, source: bytes, documentation: str, seed: int
) -> dict[str, str | int | float]:
    """Root attributes known before the run: flat, and free of clocks and credentials."""
    v = versions()
    papers = dict.fromkeys(re.findall(r"arXiv[: ]\s?(\d{4}\.\d{4,5})", documentation))
    references = ", ".join(f"arXiv {paper}" for paper in papers)
    return {
        "Conventions": "CF-1.11",
        **({"references": references} if references else {}),
        "creation_library": "confreg",
        "creation_library_version": confreg.__version__,
        "recipe": recipe,
        "recipe_text": source.decode("utf-8", "replace"),
        "confreg_version": confreg.__version__,
        **{f"{name}_version": v[name] for name in ("python", *LIBRARIES)},
        "seed": seed,
    }


def command(
    recipe: str, options: Options, parameters: Mapping[str, Any]
) -> dict[str, str | int | float]:
    """How the run was asked for: on the command line, or as a call."""
    line = options.command_line
    if line is None:
        said = {**options.said(), **parameters}
        line = f"confreg.run({recipe!r}" + "".join(f", {k}={v!r}" for k, v in said.items()) + ")"
    return {"command_line": line, "history": f"confreg {confreg.__version__}: {line}"}
