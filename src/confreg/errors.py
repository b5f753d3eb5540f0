"""The one exception that confreg raises for a mistake that its user can mend."""


class ConfregError(Exception):
    """What was wrong, where, and what to do about it, in one or two sentences.

    The command line prints the message alone and exits with status 2.
    """
