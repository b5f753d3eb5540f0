"""confreg: find and measure confidence-regulation neurons in language models.

>>> import confreg
>>> ds = confreg.run("entropy_neurons", model="smollm2-135m", out="runs/demo.zarr")
>>> ds.confreg.top("te_mediated", 10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from confreg.declaration import Effect, Recipe, recipe
from confreg.errors import ConfregError

if TYPE_CHECKING:
    from confreg import effects
    from confreg.api import make_plan, run
    from confreg.results.store import open

__version__ = "0.1.0"
__all__ = ["ConfregError", "Effect", "Recipe", "effects", "make_plan", "open", "recipe", "run"]

_LAZY = {
    "run": ("confreg.api", "run"),
    "make_plan": ("confreg.api", "make_plan"),
    "open": ("confreg.results.store", "open"),
    "effects": ("confreg.effects", None),
}


def __getattr__(name: str) -> Any:
    # torch, xarray and the rest take seconds to import: only when something needs them.
    if name not in _LAZY:
        raise AttributeError(f"module 'confreg' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
