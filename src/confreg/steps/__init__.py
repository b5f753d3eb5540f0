"""Steps that recipes share.

>>> value = steps.ablation_value(study, neurons, tokens, "mean")
>>> steps.ablation(study, trace, neurons, tokens, effects=study.chosen(), to=value)
"""

from confreg.steps.ablation import ablation
from confreg.steps.activity import activation_statistics, activations
from confreg.steps.census import (
    null_space,
    output_weights,
    several_layers,
    vocabulary_statistics,
)
from confreg.steps.controls import control_norms
from confreg.steps.directions import directions, of_directions
from confreg.steps.families import families
from confreg.steps.inputs import input_weights
from confreg.steps.matching import matches
from confreg.steps.prefix import prefix_scores
from confreg.steps.typical import typical_values
from confreg.steps.values import ablation_value
from confreg.steps.weights import frequency_cosines, weight_statistics
from confreg.subjects.ways import read as read_ways

__all__ = [
    "ablation",
    "ablation_value",
    "activation_statistics",
    "activations",
    "control_norms",
    "directions",
    "families",
    "frequency_cosines",
    "input_weights",
    "matches",
    "null_space",
    "of_directions",
    "output_weights",
    "prefix_scores",
    "read_ways",
    "several_layers",
    "typical_values",
    "vocabulary_statistics",
    "weight_statistics",
]
