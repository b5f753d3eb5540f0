"""confreg: find and measure confidence-regulation neurons in language models.

>>> import confreg
>>> ds = confreg.run("entropy_neurons", model="smollm2-135m", out="runs/demo.zarr")
>>> ds.confreg.top("te_mediated", 10)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError

# At once: importing the module later would put it in the place of the function.
from confreg.recipe import recipe

if TYPE_CHECKING:
    from confreg import derive, effects, steps
    from confreg.api import plan, run
    from confreg.axes import Axis, Label, Variable
    from confreg.many import along_models, run_each
    from confreg.models.network import Network
    from confreg.results.comparing import compare
    from confreg.results.families import families
    from confreg.results.matching import match
    from confreg.results.open import open
    from confreg.results.redundancy import redundancy
    from confreg.results.series import series
    from confreg.sweep.step import Derivation, Step

__version__ = "0.2.0"
__all__ = [
    "Axis",
    "ConfregError",
    "Derivation",
    "Label",
    "Network",
    "Step",
    "Variable",
    "along_models",
    "compare",
    "derive",
    "effects",
    "families",
    "match",
    "open",
    "plan",
    "recipe",
    "redundancy",
    "run",
    "run_each",
    "series",
    "steps",
]

_LAZY = {
    "Axis": ("confreg.axes", "Axis"),
    "Derivation": ("confreg.sweep.step", "Derivation"),
    "Label": ("confreg.axes", "Label"),
    "Network": ("confreg.models.network", "Network"),
    "Step": ("confreg.sweep.step", "Step"),
    "Variable": ("confreg.axes", "Variable"),
    "along_models": ("confreg.many", "along_models"),
    "compare": ("confreg.results.comparing", "compare"),
    "derive": ("confreg.derive", None),
    "effects": ("confreg.effects", None),
    "families": ("confreg.results.families", "families"),
    "match": ("confreg.results.matching", "match"),
    "open": ("confreg.results.open", "open"),
    "plan": ("confreg.api", "plan"),
    "redundancy": ("confreg.results.redundancy", "redundancy"),
    "run": ("confreg.api", "run"),
    "run_each": ("confreg.many", "run_each"),
    "series": ("confreg.results.series", "series"),
    "steps": ("confreg.steps", None),
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
