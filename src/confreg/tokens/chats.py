"""Chats as the text that a model's own template makes of them, and who says what in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[int, str]
"""Where a part of the text ends, in characters, and whose it is."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    where: str,
    answered: bool,
    settings: Mapping[str, Any],
) -> tuple[str, list[Part]]:
    """Render a chat.

    Parameters
    ----------
    tokenizer
        With a template of its own.
    messages
        Each with ``role`` and ``content``.
    where
        Where the chat stands.
    answered
        Whether an answer is to follow, which the template then begins.
    settings
        Further arguments of the template, such as ``enable_thinking``.

    Returns
    -------
    text : str
        As ``tokenizer.apply_chat_template`` gives it.
    parts : list of (int, str)
        Its parts, one after the other: where each ends, and its role. What a template puts around
        a message is of the message's role, what it puts before the first one of ``"system"``, and
        the beginning of an answer of ``"assistant"``.

    Raises
    ------
    ConfregError
        The tokenizer has no template, the template refuses the chat, or a message is not found in
        what it makes.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfregError(
            f"{where[0].upper()}{where[1:]} holds messages, and the tokenizer "
            f"{tokenizer.name_or_path} has no chat template: take an instruction-tuned model, or "
            "write the messages out as a prompt."
        )

    def rendered(some: Sequence[Mapping[str, Any]], begin: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(map(dict, some)), tokenize=False, add_generation_prompt=begin, **settings
            )
        )

    try:
        text = rendered(messages, answered)
    except Exception as error:  # of jinja, by whatever the template raises or lacks
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise ConfregError(
            f"The chat template of {tokenizer.name_or_path} does not take {where}: {reason}."
        ) from error
    parts: list[Part] = []
    for number, message in enumerate(messages):
        begins = parts[-1][0] if parts else 0
        end = _end(text, _attempt(rendered, messages[: number + 1]), begins)
        end = _found(text, message, begins, where, number) if end is None else end
        if not number:
            own = _own_length(rendered, message, text[:end])
            parts += [(end - own, "system")] * (0 < own < end)
        parts.append((end, str(message["role"])))
    if parts[-1][0] < len(text):
        parts.append((len(text), "assistant" if answered else parts[-1][1]))
    return text, parts


def roles(parts: Sequence[Part], starts: Sequence[int]) -> list[str]:
    """Roles of tokens by the characters at which they start; the last role beyond the end."""
    found, at = [], 0
    for start in starts:
        while at + 1 < len(parts) and start >= parts[at][0]:
            at += 1
        found.append(parts[at][1])
    return found


def _attempt(rendered: Any, messages: Sequence[Mapping[str, Any]]) -> str | None:
    try:
        return rendered(messages)
    except Exception:  # a template may refuse a chat that ends early
        return None


def _end(text: str, beginning: str | None, least: int) -> int | None:
    """Where a chat that ends early ends in the whole one, if that goes on from it."""
    if beginning is None or len(beginning) <= least or not text.startswith(beginning):
        return None
    return len(beginning)


def _found(text: str, message: Mapping[str, Any], begins: int, where: str, number: int) -> int:
    """Where a message's content ends: some templates change what came before the last message."""
    content = str(message["content"]).strip()
    at = text.find(content, begins)
    if at < 0:
        raise ConfregError(
            f"The chat template changes message {number + 1} of {where}, so that no token can be "
            "told to be of it: write the messages out as a prompt."
        )
    return at + len(content)


def _own_length(rendered: Any, message: Mapping[str, Any], text: str) -> int:
    """How much of the text is the first message's, where a template puts some before it.

    Told by what the message is behind a system message of ours.
    """
    system = {"role": "system", "content": "-"}
    if message["role"] == "system":
        return 0
    one, two = _attempt(rendered, [system]), _attempt(rendered, [system, message])
    if one is None or two is None or not two.startswith(one):
        return 0
    own = two[len(one) :]
    return len(own) if text.endswith(own) else 0
