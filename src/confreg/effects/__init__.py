"""The mathematics of ablation, in plain torch: the only code that travels to a server.

Everything here is shipped *by value and by source* into a process that has torch and
nnsight and not us, on another version of Python. Hence the rules of this room: import
torch and nothing else (Python's threads apart); plain functions and plain classes with a
written ``__init__`` (a dataclass's generated methods would travel as bytecode of the wrong
Python); no decorators; weights are reached by calling modules, never by reading
``.weight``.
"""

from .batch import Batch
from .frequency import frequency_cosines
from .heads import attend_first, prefix_matching
from .intervene import ablate
from .readout import MetaWeightError, Readout, read_readout
from .sweep import measure
from .values import ablation_values, pick
from .weights import weight_statistics
from .write import Write

__all__ = [
    "Batch",
    "MetaWeightError",
    "Readout",
    "Write",
    "ablate",
    "ablation_values",
    "attend_first",
    "frequency_cosines",
    "measure",
    "pick",
    "prefix_matching",
    "read_readout",
    "weight_statistics",
]
