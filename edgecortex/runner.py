"""Runs requests one after the other on mlx-lm's own KV cache."""

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.generation import Generation
from edgecortex.models.adapter import LoadedModel, common_prefix_len

if TYPE_CHECKING:
    from edgecortex.agent import Agent, AnswerHook


@dataclass
class Request:
    """One answer to make."""

    agent: "Agent"
    prompt_ids: list[int]
    sampling: SamplingParams
    generation: Generation
    answered: "AnswerHook"
    text: str = ""
    detokenizer: Any = None
    sampler: Any = None
    rng: Any = None


@dataclass
class _Context:
    cache: list[Any]
    token_ids: list[int] = field(default_factory=list)


class Runner:
    """First come, first served."""

    def __init__(self, model: LoadedModel, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self._waiting: deque[Request] = deque()
        self._contexts: dict[Agent, _Context] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def add(self, request: Request) -> None:
        request.detokenizer = self.model.tokenizer.detokenizer()
        request.sampler = self.model.make_sampler(request.sampling)
        self._waiting.append(request)

    def cancel_all(self) -> None:
        while self._waiting:
            self._finish(self._waiting.popleft(), "cancelled")

    def release(self, agent: "Agent") -> None:
        self._contexts.pop(agent, None)

    def kv_nbytes(self, agent: "Agent") -> int:
        context = self._contexts.get(agent)
        return sum(layer.nbytes for layer in context.cache) if context else 0

    def step(self) -> None:
        request = self._waiting[0]
        try:
            reason = "cancelled" if request.generation.cancelled else self._advance(request)
        except Exception as error:
            self._waiting.popleft()
            self._finish(request, "error", error)
            return
        if reason:
            self._waiting.popleft()
            self._finish(request, reason)

    def _advance(self, request: Request) -> str | None:
        wanted = request.prompt_ids + request.generation.token_ids
        context = self._context(request, wanted)
        chunk = wanted[len(context.token_ids) :][: self.config.prefill_chunk]
        logits = self.model.model(mx.array([chunk]), cache=context.cache)[:, -1]
        context.token_ids = context.token_ids + chunk
        if len(context.token_ids) < len(wanted):
            mx.eval([layer.state for layer in context.cache])
            return None
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        token = int(request.sampler(logprobs).item())
        return self._take(request, token, len(wanted) + 1)

    def _context(self, request: Request, wanted: list[int]) -> _Context:
        context = self._contexts.get(request.agent)
        if context:
            keep = min(common_prefix_len(context.token_ids, wanted), len(wanted) - 1)
            if self.model.trim(context.cache, len(context.token_ids) - keep):
                context.token_ids = context.token_ids[:keep]
            else:
                context = None
        context = context or _Context(self.model.make_cache())
        self._contexts[request.agent] = context
        if not request.generation.token_ids and not request.generation.stats.num_prompt_tokens:
            request.generation.stats.num_prompt_tokens = len(wanted)
            request.generation.stats.num_cached_tokens = len(context.token_ids)
        return context

    def _take(self, request: Request, token: int, num_tokens: int) -> str | None:
        if token in self.model.tokenizer.eos_token_ids:
            return "stop"
        request.detokenizer.add_token(token)
        piece = request.detokenizer.last_segment
        request.text += piece
        request.generation.add_token(token, piece)
        if request.generation.stats.num_generated_tokens >= request.sampling.max_tokens:
            return "length"
        return "context" if num_tokens >= request.agent.engine.context_length else None

    def _finish(self, request: Request, reason: str, error: Exception | None = None) -> None:
        request.detokenizer.finalize()
        last = request.detokenizer.last_segment
        request.answered(request.generation, request.text + last)
        request.generation.finish(reason, last, error)
