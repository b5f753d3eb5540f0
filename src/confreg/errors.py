"""The one exception that confreg raises for a mistake that its user can mend."""


class ConfregError(Exception):
    """What was wrong, where, and what to do about it, in one or two sentences.

    The command line prints the message alone and exits with status 2.
    """


def said(error: BaseException) -> str:
    """What another library's error says, in one line.

    The first line, and the next where the first announces it; the kind of error before a bare word.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    first = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    bare = isinstance(error, KeyError | AttributeError | TypeError)
    return f"{type(error).__name__}: {first}" if bare else first
