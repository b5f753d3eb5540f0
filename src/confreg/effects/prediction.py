"""Predictions that measures are read off, and what measures share of them."""


class Prediction:
    """Logits of m predictions, and what measures share of them.

    Parameters
    ----------
    logits : Tensor (m, V)
    targets : Tensor (m,) int64
        -1 where there is none.
    given : dict of str to Tensor, optional
        See `Measure`.
    """

    def __init__(self, logits, targets, given=None):
        self.logits = logits
        self.targets = targets
        self.given = given or {}
        self.known = {}

    def once(self, function):
        """``function(self)``, computed once."""
        if function not in self.known:
            self.known[function] = function(self)
        return self.known[function]

    def known_as(self, name, measure):
        """One of the arrays given."""
        if name not in self.given:
            raise ValueError(f"measure {measure!r} needs {name!r}, which is not known here")
        return self.given[name]


class Comparison:
    """Original and edited logits, (m, V) float64 each, and what measures share of them."""

    def __init__(self, before, after):
        self.before = before
        self.after = after
        self.known = {}

    def once(self, function):
        """``function(before, after)``, computed once."""
        if function not in self.known:
            self.known[function] = function(self.before, self.after)
        return self.known[function]
