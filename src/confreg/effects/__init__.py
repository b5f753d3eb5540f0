"""The mathematics of ablation, in plain torch: the only code that travels to a server.

    unit = Unit(tokens, Replace(index, values), Series(1e-5), [loss.total, entropy.direct])
    site = model.site(unit.layer)
    with model.trace(unit.inputs):
        activation = site.neurons.input
        if unit.copies:
            site.neurons.input = unit.edits.apply(activation, unit.copies)
        block = site.measure(unit, activation)
        nnsight.save(block)

Everything here is shipped *by value and by source* into a process that has torch and
nnsight and not us, on another version of Python. Hence the rules of this room: import
torch and nothing else (Python's threads apart); plain functions and plain classes with a
written ``__init__`` (a dataclass's generated methods would travel as bytecode of the wrong
Python); no decorators; weights are reached by calling modules, never by reading
``.weight``; a module is never used as an object, since all of it would travel.
"""

from .along import Along
from .compare import compare
from .edits import AttendFirst, Replace, ReplaceByOwn, Together, add_to_copies, copies_of
from .engines import Exact, Forward, Series, fitting
from .frequency import frequency_cosines
from .heads import prefix_matching
from .inputs import Inputs, input_statistics
from .measures import (
    ANSWERED,
    SURE,
    Effect,
    Measure,
    confidence,
    contrast,
    contrast_whole,
    correct,
    divergence,
    entropy,
    kl_frequency,
    loss,
    norm_scale,
    rank,
    reciprocal_rank,
    target_loss,
    temperature_share,
    tempered_divergence,
    top1,
)
from .observed import unedited
from .prediction import Comparison, Prediction
from .readout import MetaWeightError, Readout, read_readout
from .routed import Always, Routed, Weighed
from .site import Site
from .tasks import (
    Activations,
    Directions,
    FrequencyWeights,
    Norms,
    NullSpace,
    Prefixes,
    Reading,
    Space,
    Vocabulary,
    Weights,
    Written,
)
from .unit import Entries, Tokens, Unit
from .values import ablation_values, pick, replaced
from .vocabulary import null_statistics, vocabulary_statistics
from .weights import weight_statistics
from .write import Write

__all__ = [
    "ANSWERED",
    "SURE",
    "Activations",
    "Along",
    "Always",
    "AttendFirst",
    "Comparison",
    "Directions",
    "Effect",
    "Entries",
    "Exact",
    "Forward",
    "FrequencyWeights",
    "Inputs",
    "Measure",
    "MetaWeightError",
    "Norms",
    "NullSpace",
    "Prediction",
    "Prefixes",
    "Reading",
    "Readout",
    "Replace",
    "ReplaceByOwn",
    "Routed",
    "Series",
    "Site",
    "Space",
    "Together",
    "Tokens",
    "Unit",
    "Vocabulary",
    "Weighed",
    "Weights",
    "Write",
    "Written",
    "ablation_values",
    "add_to_copies",
    "compare",
    "confidence",
    "contrast",
    "contrast_whole",
    "copies_of",
    "correct",
    "divergence",
    "entropy",
    "fitting",
    "frequency_cosines",
    "input_statistics",
    "kl_frequency",
    "loss",
    "norm_scale",
    "null_statistics",
    "pick",
    "prefix_matching",
    "rank",
    "read_readout",
    "reciprocal_rank",
    "replaced",
    "target_loss",
    "temperature_share",
    "tempered_divergence",
    "top1",
    "unedited",
    "vocabulary_statistics",
    "weight_statistics",
]
