"""The text side of an agent: messages, and the token ids that stand for them."""

import copy
from dataclasses import dataclass, field
from typing import Protocol

from edgecortex.errors import PromptError

Message = dict[str, str]


class ChatTokenizer(Protocol):
    """What a conversation needs of a tokenizer."""

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Token ids of `text`; `first` puts the model's own start token before it."""

    def render(self, messages: list[Message]) -> str:
        """The prompt text up to where the assistant's answer begins."""


@dataclass
class Conversation:
    """Messages and the ids fed for them. Old text is never tokenized again.

    A turn's ids are the ids so far (prompts and generated tokens alike) plus the ids of the
    text that the template adds. Only where a template rewrites earlier turns, or a stop string
    cut an answer, is the whole text tokenized anew.
    """

    tokenizer: ChatTokenizer
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    rendered: str = ""
    _before: tuple[list[Message], list[int], str] | None = None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.token_ids, self.rendered, self._before = [], "", None

    def restore(self, messages: list[Message], token_ids: list[int], rendered: str) -> None:
        """Goes on from what was told before; without ids the next turn reads all text anew."""
        self.reset()
        self.messages = [dict(message) for message in messages]
        self.token_ids, self.rendered = list(token_ids), rendered

    def catch_up(self) -> list[int]:
        """The ids so far; text that came without them, and ends with an answer, is encoded."""
        if not self.rendered and self.messages and self.messages[-1]["role"] == "assistant":
            text = self.messages[-1]["content"]
            prompt = self.tokenizer.render(self.messages[:-1])
            self.token_ids = self.tokenizer.encode(prompt, first=True)
            self.token_ids += self.tokenizer.encode(text, first=False)
            self.rendered = prompt + text
        return self.token_ids

    def copy(self) -> "Conversation":
        """The same turns, to be continued in another way."""
        twin = copy.copy(self)
        twin.messages = [dict(message) for message in self.messages]
        return twin

    def ask(self, text: str, max_context: int, reserve: int) -> tuple[list[int], int]:
        """Adds a user's turn: the ids of the whole prompt, and how many messages were dropped.

        When the prompt and `reserve` tokens for the answer pass `max_context`, the oldest turns
        are dropped, never the system prompt nor the new turn, until half the room is free.

        Raises:
            PromptError: the turn is empty, or too long by itself; nothing is changed then.
        """
        if not text.strip():
            raise PromptError("the prompt is empty: expected some text, got none")
        messages = [*self.messages, {"role": "user", "content": text}]
        rendered = self.tokenizer.render(messages)
        ids, num_dropped = self._encode(rendered), 0
        if len(ids) + reserve > max_context:
            messages, rendered, ids = self._shorten(messages, max_context, reserve)
            num_dropped = len(self.messages) + 1 - len(messages)
        self._before = self.messages, self.token_ids, self.rendered
        self.messages, self.token_ids, self.rendered = messages, ids, rendered
        return ids, num_dropped

    def tell(self, text: str, reply: str, max_context: int) -> int:
        """Adds a user's turn and an answer to it that is given: how many messages were dropped.

        Raises:
            PromptError: either is empty, or they are too long; nothing is changed then.
        """
        if not reply.strip():
            raise PromptError("the reply is empty: expected some text, got none")
        ids = self.tokenizer.encode(reply, first=False)
        if len(ids) >= max_context:
            raise PromptError(
                f"the reply is too long: expected less than the context of {max_context} tokens, "
                f"got {len(ids)}; shorten it"
            )
        _, num_dropped = self.ask(text, max_context, reserve=len(ids))
        self.answered(reply, ids)
        return num_dropped

    def withdraw(self) -> None:
        """Undoes the last `ask`, which got no answer."""
        if self._before:
            self.messages, self.token_ids, self.rendered = self._before
            self._before = None

    def answered(self, text: str, token_ids: list[int], cut: bool = False) -> None:
        """Adds the assistant's turn, made of `token_ids`; `cut` if they say more than `text`."""
        self.messages = [*self.messages, {"role": "assistant", "content": text}]
        self.token_ids = self.token_ids + token_ids
        self.rendered, self._before = "" if cut else self.rendered + text, None

    def _encode(self, rendered: str) -> list[int]:
        if self.rendered and rendered.startswith(self.rendered):
            new = rendered[len(self.rendered) :]
            return self.token_ids + self.tokenizer.encode(new, first=False)
        return self.tokenizer.encode(rendered, first=True)

    def _shorten(
        self, messages: list[Message], max_context: int, reserve: int
    ) -> tuple[list[Message], str, list[int]]:
        kept = len(self.messages) and self.messages[0]["role"] == "system"
        head, turns = messages[:kept], messages[kept:]
        room = max_context - reserve
        while True:
            rendered = self.tokenizer.render(head + turns)
            ids = self.tokenizer.encode(rendered, first=True)
            target = room // 2 if len(turns) > 1 else room
            if len(ids) <= target:
                return head + turns, rendered, ids
            if len(turns) == 1:
                raise PromptError(
                    f"the prompt is too long: expected at most {room} tokens "
                    f"({max_context} of context less {reserve} for the answer), got {len(ids)}; "
                    "shorten it, or allow its answer fewer tokens"
                )
            turns = turns[2:] if len(turns) > 2 else turns[-1:]
