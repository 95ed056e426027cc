"""What a language model is given of a conversation: the latest of what was said, as much of it as fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from app.controller.conversation import Exchange
from app.controller.request import MAX_CHARACTERS

if TYPE_CHECKING:  # its import takes seconds
    from models.language_model import LanguageModel

Message = Mapping[str, str]

MAX_EXCHANGES = 6
MAX_SAID = 600  # characters of each thing that was said earlier
LEFT_OUT = " … "


def messages(
    manner: str, said: Sequence[Exchange], prompt: str, length: Callable[[Sequence[Message]], int], room: int
) -> list[Message]:
    """``manner``, the latest of ``said`` and ``prompt`` as a chat whose ``length`` is ``room`` at most.

    The oldest exchanges are left out first, then the middle of the prompt. Only where not even an empty prompt fits is
    it longer than ``room``.
    """
    told = [exchange for exchange in said if exchange.asked.strip() and exchange.answered.strip()]
    kept = told[max(0, len(told) - MAX_EXCHANGES) :]
    asked = shortened(prompt, MAX_CHARACTERS)
    while kept and length(_chat(manner, kept, asked)) > room:
        kept = kept[1:]
    while asked and length(_chat(manner, kept, asked)) > room:
        asked = shortened(asked, len(asked) * 2 // 3)
    return _chat(manner, kept, asked)


def shortened(text: str, characters: int) -> str:
    """``text`` without its middle, if it is longer: people say what they want at the start or at the end."""
    text = text.encode("utf-8", "replace").decode()  # halves of characters are nothing that can be read
    if len(text) <= characters:
        return text
    kept = max(0, characters - len(LEFT_OUT))
    end = kept // 4
    return text[: kept - end] + LEFT_OUT + text[len(text) - end :] if kept else ""


def characters(chat: Sequence[Message]) -> int:
    """A length for models of other machines, whose tokens cannot be counted here."""
    return sum(len(message["content"]) for message in chat)


def tokens(model: LanguageModel) -> Callable[[Sequence[Message]], int]:
    """The length of a chat as ``model`` reads it, up to where its answer begins."""

    def length(chat: Sequence[Message]) -> int:
        read = model.tokenizer.apply_chat_template(
            [dict(message) for message in chat],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            return_dict=False,
        )
        return len(cast(list[int], read))

    return length


def _chat(manner: str, said: Sequence[Exchange], asked: str) -> list[Message]:
    chat: list[Message] = [{"role": "system", "content": manner}]
    for exchange in said:
        chat.append({"role": "user", "content": shortened(exchange.asked, MAX_SAID)})
        chat.append({"role": "assistant", "content": shortened(exchange.answered, MAX_SAID)})
    return [*chat, {"role": "user", "content": asked}]
