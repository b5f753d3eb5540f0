"""Families: which tokens explain what a neuron does?

Of some hundred features of a token's text and of the token before it (spaces, case, digits,
symbols, length, endings, the most frequent tokens themselves), the one that explains most of the
variance of a neuron's activation v. With y whether a token has the feature, as a share β of them
has:

    reduction = 1 − [(1 − β) Var(v | y = 0) + β Var(v | y = 1)] / Var(v)

From sums by token that units of work add up: no activation is kept, and texts may be long.
`confreg.families` says the same of a store that keeps activations, and has a floor from shuffles.

Gurnee, Horsley, Guo, Kheirkhah, Sun, Hathaway, Nanda, Bertsimas (2024), Universal Neurons in GPT2
Language Models, arXiv 2401.12181, equation 4 and section 4.3.
"""

from confreg import recipe, steps


@recipe()
def families(study, *, layer: int = -1, least: int = 30):
    """Name the tokens that each neuron of a layer follows; features of ``least`` tokens count."""
    return steps.families(study, study.neurons(layer), study.tokens(), least)
