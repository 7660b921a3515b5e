"""Engines over tiny models that can talk, and say what a test has written down for them.

The model is one of `tiny`'s: its keys, values and hidden states are what they would be. A token is
a letter. Only the logits that a step selects are changed: after a question that is in the script
its answer follows, after anything else the letter that the model itself finds best.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import Agent, Engine, EngineConfig, SamplingParams
from edgecortex.kv.context import Context
from edgecortex.models.adapter import LoadedModel
from tests import tiny

LETTERS = "\n" + "".join(map(chr, range(32, 127)))  # ids from 1 on; 0 ends an answer
ANSWER = "\na:"  # ends a prompt
Script = Mapping[str, Sequence[str]]
"""A question, or how it ends, and the pieces of its answer; each piece is one token."""


class Letters:
    """A tokenizer with a token for each letter, and for each question and piece of a script."""

    eos_token_ids = frozenset({0})
    has_chat_template = True

    def __init__(self, script: Script) -> None:
        self.texts = ["", *LETTERS]
        self.follows: dict[int, int] = {}
        self.cues: dict[str, int] = {}
        for question, answer in script.items():
            self.cues[question + ANSWER] = last = self._new(question + ANSWER)
            for piece in answer:
                last, before = self._new(piece), last
                self.follows[before] = last
            self.follows[last] = 0
        longest_first = sorted(self.cues, key=len, reverse=True)
        self._parts = re.compile("|".join([*map(re.escape, longest_first), "."]), re.DOTALL)

    def _new(self, text: str) -> int:
        self.texts.append(text)
        return len(self.texts) - 1

    def encode(self, text: str, *, first: bool) -> list[int]:
        parts = self._parts.findall(text)
        return [self.cues[x] if x in self.cues else 1 + LETTERS.index(x) for x in parts]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.texts[i] for i in token_ids)

    def render(self, messages: list[dict[str, str]]) -> str:
        turns = [f"{message['role'][0]}:{message['content']}" for message in messages]
        return "\n".join(turns) + ANSWER

    def detokenizer(self) -> "Speaker":
        return Speaker(self.texts)


@dataclass
class Speaker:
    """A token's text is complete at once."""

    texts: Sequence[str]
    last_segment: str = ""

    def add_token(self, token: int) -> None:
        self.last_segment = self.texts[token]

    def finalize(self) -> None:
        self.last_segment = ""


@dataclass
class Scripted(LoadedModel):
    """A model that keeps to `follows`: which token comes after which."""

    follows: Mapping[int, int] = field(default_factory=dict)

    def forward(self, rows: mx.array, caches: Sequence[Any], wanted: mx.array | None) -> mx.array:
        logits = super().forward(rows, caches, wanted)
        if wanted is None:
            return logits
        forbidden = np.zeros(logits.shape, bool)
        forbidden[:, [0, *range(1 + len(LETTERS), logits.shape[1])]] = True
        for i, token in enumerate(np.array(rows[wanted, 0]).tolist()):
            if token in self.follows:
                forbidden[i] = np.arange(logits.shape[1]) != self.follows[token]
        return mx.where(mx.array(forbidden), mx.array(-1e9, logits.dtype), logits)


def model(
    script: Script | None = None, kind: str = "llama", folder: Path | None = None
) -> Scripted:
    """A model with a script; its weights are in `folder` if a store is to know it again."""
    letters = Letters(script or {})
    made = tiny.make(kind, vocab_size=len(letters.texts))
    path = made.path
    if folder:
        path = folder / "model"
        path = path if path.exists() else tiny.save_weights(made, folder)
    return Scripted(path, made.model, letters, made.config, made.selection, letters.follows)


@contextmanager
def engine(
    script: Script | None = None, kind: str = "llama", folder: Path | None = None, **config: Any
) -> Iterator[Engine]:
    """An engine with such a model, and a store in `folder` if there is one."""
    settings: dict[str, Any] = {"kv_format": "fp", "use_store": folder is not None}
    settings |= {"store_path": folder / "store"} if folder else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgecortex.engine.resolve", lambda name, progress: Path(name))
        patch.setattr("edgecortex.engine.load_model", lambda path: model(script, kind, folder))
        loaded = Engine.load("tiny", config=EngineConfig(**(settings | config)))
    with loaded:
        yield loaded


def limit(max_tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, **more)


def until(engine: Engine, condition: Callable[[], Any]) -> None:
    """Waits, between the engine's steps, for what has to come true."""
    end = time.monotonic() + 60
    while not engine.call(condition):
        assert time.monotonic() < end, "it never came true"


def context_of(agent: Agent) -> Context:
    """An agent's context, which is resident."""
    context = agent.engine.call(lambda: agent.engine.core.contexts.get(agent))
    assert context is not None
    return context


def logits_after(agent: Agent, text: str) -> np.ndarray:
    """The logits (tokens, vocab) of a text that comes next, on a copy of an agent's context."""
    core, context = agent.engine.core, context_of(agent)
    new = core.model.tokenizer.encode(text, first=False)
    ids = agent.conversation.token_ids[context.num_own :] + new

    def run() -> np.ndarray:
        with core.pool.kept(context):
            copy = core.pool.fork(context)
            try:
                assert core.pool.acquire(copy, copy.num_own + len(ids))
                return np.array(core.runner.run([(copy, ids)], all_rows=True)[1])[-len(new) :]
            finally:
                core.pool.close(copy)

    logits: np.ndarray = agent.engine.call(run)
    return logits
