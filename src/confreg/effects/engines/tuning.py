"""Sizes that decide what the closed forms cost, and no number beyond its rounding."""

CACHED = 2**19  # numbers at once: what a few passes find in the cache
PIECE = 2**11  # terms that a float32 product adds up one by one, losing digits as it goes
MANY = 32  # rows for which products of so few terms are the fastest sums
SAFE = 20.0  # |f| up to which float32 sums of f e^f keep their digits
LOG2E = 1.4426950408889634  # exp2 is twice as fast as exp
WORKERS = 4  # tokens at once; more would wait for Python's lock: they get more threads each instead
