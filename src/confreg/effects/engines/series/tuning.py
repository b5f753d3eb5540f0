"""Sizes that decide what the series costs, and no number beyond its tolerance."""

BLOCK = 2048  # vocabulary entries at once
TOKENS = 8  # at once in float64

BANDS = (-9.0, -12.7)
"""Log probabilities at which the bands of stage 2 end: some 200 and 2,000 entries in all."""
GATHERED = 2**20  # of u's numbers, at once

ORDERS = (3, 4, 5, 6, 8, 10)
"""Orders beyond the second that an edit may be taken to."""
EXACT, BANDED = 100.0, 50.0
"""Costs of a pair's exact sums and of its bands, in products of u with a column of p."""
OFTEN = 0.05
"""Share of tokens at which second order must fail before a higher one is looked at."""
LIKELY = 1024
"""Vocabulary entries that are looked at to choose an order."""
FEWER = ((1, 5), (3, 4), (5, 3))
"""From which power of û on how many powers of q go with it."""
