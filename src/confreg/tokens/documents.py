"""What a record says: running text, a prompt and its answers, or a chat.

* ``{"text": ...}``: running text;
* ``{"prompt": ..., "target": ...}``: a prompt and what follows it. The target is a string, or a
  list of accepted ones of which the first is read; ``"contrast"`` is a string it is compared with;
* ``{"messages": [{"role": ..., "content": ...}, ...]}``: a chat, ``"target"`` and ``"contrast"`` as
  of a prompt.

Further fields are columns, which may label tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from confreg.errors import ConfregError
from confreg.tokens.records import checked, parsed, text_of

Kind = Literal["text", "prompt", "messages"]
KINDS: tuple[Kind, ...] = ("prompt", "messages", "text")


@dataclass(frozen=True)
class Prompt:
    """A document that is read by itself.

    Attributes
    ----------
    where
        Where it stands: ``"line 3 of 'a.jsonl'"``.
    text
        The prompt; None of a chat.
    messages
        Of a chat, each with ``role`` and ``content``.
    targets
        Accepted answers, the first of which is read after the prompt; none if none is known.
    contrast
        What the first is compared with, or None.
    columns
        All fields of the record.
    """

    where: str
    text: str | None
    messages: Sequence[Mapping[str, Any]]
    targets: tuple[str, ...]
    contrast: str | None
    columns: Mapping[str, Any]


def kind_of(record: Mapping[str, Any]) -> Kind:
    """What a record holds, by its fields."""
    for kind in KINDS:
        if record.get(kind) is not None:
            return kind
    return "text"


def same_kind(where: str, record: Mapping[str, Any], kind: Kind) -> None:
    """Check that a record is of the kind of those before it.

    Raises
    ------
    ConfregError
        It is not.
    """
    found = kind_of(record)
    # A record that has nothing of either is complained about where its text is read.
    if found != kind and (record.get(found) is not None or kind != "text"):
        have = found if record.get(found) is not None else "neither prompt, messages nor text"
        raise ConfregError(
            f"{_capital(where)} has {have!r}, and the documents before it {kind!r}: give documents "
            "of one kind, the others in a run of their own."
        )


def prompt_of(where: str, record: Mapping[str, Any]) -> Prompt:
    """A record as a prompt or a chat.

    Raises
    ------
    ConfregError
        A field is missing or of another type than it should be.
    """
    targets = _targets(where, record)
    contrast = record.get("contrast")
    if contrast is not None:
        contrast = _text(where, "contrast", contrast)
        if not targets:
            raise ConfregError(
                f"{_capital(where)} has a contrast and no target that it could be compared with."
            )
    if kind_of(record) == "messages":
        messages = _messages(where, record["messages"])
        return Prompt(where, None, messages, targets, contrast, record)
    text = text_of(where, record, "prompt")
    if not text:
        raise ConfregError(f"{_capital(where)}: the prompt is empty.")
    return Prompt(where, text, (), targets, contrast, record)


def plain(where: str, record: Mapping[str, Any]) -> str:
    """A document as one string: a prompt with its target, a chat's contents line by line."""
    kind = kind_of(record)
    if kind == "text":
        return text_of(where, record)
    found = prompt_of(where, record)
    first = "".join(found.targets[:1])
    if found.text is not None:
        return found.text + first
    contents = [str(message["content"]) for message in found.messages]
    return "\n".join([*contents, first] if first else contents)


def _targets(where: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    given = record.get("target")
    if given is None:
        return ()
    if hasattr(given, "tolist"):  # an array, of a Parquet file by way of pandas
        given = given.tolist()
    found = list(given) if isinstance(given, list | tuple) else [given]
    if not found:
        raise ConfregError(
            f"{_capital(where)}: the list of targets is empty; leave it out where none is known."
        )
    return tuple(_text(where, "target", each) for each in found)


def _text(where: str, field: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        kind = "empty" if value == "" else f"of type {type(value).__name__}, not a string"
        raise ConfregError(f"{_capital(where)}: the {field} is {kind}.")
    return checked(where, value)


def _messages(where: str, given: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(given, str):  # a field of a CSV file
        given = parsed(f"the field messages of {where}", given)
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, list | tuple) or not given:
        raise ConfregError(f"{_capital(where)}: the messages are no list, or an empty one.")
    for number, message in enumerate(given, start=1):
        fields = message if isinstance(message, Mapping) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise ConfregError(
                f"{_capital(where)}: message {number} needs a role and a content, both strings."
            )
        checked(where, fields["content"])
    return given


def _capital(where: str) -> str:
    return where[0].upper() + where[1:]
