"""The engine's inside: single-threaded, one `step()` at a time."""

import contextlib
import time
from typing import TYPE_CHECKING

import mlx.core as mx

from edgecortex.config import EngineConfig
from edgecortex.errors import BudgetError
from edgecortex.kv.context import Context
from edgecortex.models.adapter import LoadedModel, common_prefix_len
from edgecortex.runner import ModelRunner
from edgecortex.sampling import sample
from edgecortex.scheduler import Request, Scheduler

if TYPE_CHECKING:
    from edgecortex.agent import Agent


class EngineCore:
    """Makes answers for many agents over one model. Call everything from one thread."""

    def __init__(self, model: LoadedModel, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.runner = ModelRunner(model, config)
        self.pool = self.runner.pool
        self.scheduler = Scheduler(config, self._admit)
        self.overhead_s = self.sample_s = 0.0  # so far, in steps
        self._contexts: dict[Agent, Context] = {}
        self.pool.on_evict = self._forget

    @property
    def context_length(self) -> int:
        """The longest context, in tokens."""
        limit = self.model.context_length
        return min(limit, self.config.context_length or limit)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    # Agents.

    def add(self, request: Request) -> None:
        """Queues an answer; one that can never fit fails at once."""
        need = self.pool.growth(Context(0), self._longest(request)) + self.pool.row_nbytes
        if need > self.pool.max_bytes:
            error = BudgetError(
                f"this answer needs {need:,} bytes of KV, more than the whole budget of "
                f"{self.pool.max_bytes:,}; shorten the prompt, lower max_tokens or raise the budget"
            )
            self._finish(request, "error", error)
        else:
            self.scheduler.add(request)

    def fork(self, parent: "Agent", child: "Agent") -> None:
        """Gives `child` the KV of `parent`, if it has any and there is room for one more row."""
        if context := self._contexts.get(parent):
            self.pool.acquire(context, context.num_own)  # in use it is not evicted for the child
            with contextlib.suppress(BudgetError):
                self._contexts[child] = self.pool.fork(context)
            self.pool.release(context)

    def release(self, agent: "Agent") -> None:
        """Frees an agent's KV; an answer in progress ends as cancelled."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.agent is agent:
                self._finish(request, "cancelled")
        if context := self._contexts.pop(agent, None):
            self.pool.close(context)

    def cancel_all(self, error: Exception) -> None:
        """Ends every answer as cancelled, with an error to raise."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self._finish(request, "cancelled", error)

    def kv_nbytes(self, agent: "Agent") -> int:
        """Bytes of KV that an agent holds, shared segments in full."""
        context = self._contexts.get(agent)
        return self.pool.nbytes(context) if context else 0

    # One step.

    def step(self) -> None:
        """Schedule, run, postprocess."""
        start = time.perf_counter()
        self._drop_cancelled()
        batch = self.scheduler.schedule()
        if not batch:
            self._refuse_stuck()
            return
        elsewhere = self.runner.model_s + self.sample_s
        try:
            self._postprocess(*self._run(batch))
        except Exception as error:
            for request in [request for request, _ in batch if request in self.scheduler.running]:
                self._fail(request, error)
            return
        seconds = time.perf_counter() - start
        self.overhead_s += seconds - (self.runner.model_s + self.sample_s - elsewhere)
        self.scheduler.observe([n for _, n in batch], seconds)

    def _run(self, batch: list[tuple[Request, int]]) -> tuple[list[Request], mx.array]:
        """Feeds the batch. Returns who gets a token, and the logits of just these."""
        by_context = {}
        feed = []
        for request, share in batch:
            assert request.context is not None
            by_context[request.context] = request
            feed.append((request.context, request.next_ids(share)))
        contexts, logits = self.runner.run(feed)
        rows = [i for i, c in enumerate(contexts) if by_context[c].pending() == 0]
        if len(rows) < len(contexts):
            logits = logits[mx.array(rows, dtype=mx.int32)]
        return [by_context[contexts[row]] for row in rows], logits

    def _postprocess(self, done: list[Request], logits: mx.array) -> None:
        if not done:
            return
        choices = [(r.sampling, r.seed, r.generation.stats.num_generated_tokens) for r in done]
        start = time.perf_counter()
        tokens = sample(logits, choices)
        self.sample_s += time.perf_counter() - start
        for request, token in zip(done, tokens, strict=True):
            if reason := self._take(request, token):
                self._finish(request, reason)

    def _take(self, request: Request, token: int) -> str | None:
        """Adds a token to an answer. Returns why the answer ends with it, if it does."""
        if token in self.model.tokenizer.eos_token_ids:
            return "stop"
        request.detokenizer.add_token(token)
        request.text += request.detokenizer.last_segment
        _cut_at_stop(request)
        request.generation.add_token(token, _emit(request, hold=not request.cut))
        if request.cut:
            return "stop"
        stats = request.generation.stats
        if stats.num_generated_tokens >= request.sampling.max_tokens:
            return "length"
        full = stats.num_prompt_tokens + stats.num_generated_tokens >= self.context_length
        return "context" if full else None

    def _finish(self, request: Request, reason: str, error: Exception | None = None) -> None:
        self.scheduler.remove(request)
        if not request.cut:
            request.detokenizer.finalize()
            request.text += request.detokenizer.last_segment
            _cut_at_stop(request)
        if request.context is not None:
            self.pool.release(request.context)
        request.answered(None if error else request.text, request.cut)
        request.generation.finish(reason, _emit(request, hold=False), error)

    def _fail(self, request: Request, error: Exception) -> None:
        """Ends an answer with an error and lets its KV go: nobody knows how far it got."""
        self._finish(request, "error", error)
        if context := self._contexts.pop(request.agent, None):
            self.pool.close(context)

    def _drop_cancelled(self) -> None:
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.generation.cancelled:
                self._finish(request, "cancelled")

    # Admission.

    def _admit(self, request: Request) -> bool:
        """Finds the request a context with what is already known of its prompt."""
        try:
            context = self._contexts.get(request.agent) or self.pool.open()
        except BudgetError:
            return False
        self._contexts[request.agent] = context
        known = common_prefix_len(context.token_ids, request.prompt_ids)
        known = self.pool.truncate(context, min(known, len(request.prompt_ids) - 1))
        if not self.pool.acquire(context, self._longest(request)):
            return False
        request.context = context
        request.generation.stats.num_prompt_tokens = len(request.prompt_ids)
        request.generation.stats.num_cached_tokens = known
        return True

    def _refuse_stuck(self) -> None:
        """Nobody runs, and the first in line finds no room: it never will."""
        if self.scheduler.waiting:
            request = self.scheduler.waiting[0]
            error = BudgetError(
                f"no room for agent {request.agent.name!r}: {self.pool.free_bytes:,} bytes of "
                f"the KV budget of {self.pool.max_bytes:,} are free and nobody else is running; "
                "close agents or raise the budget"
            )
            self._finish(request, "error", error)

    def _longest(self, request: Request) -> int:
        return min(request.max_tokens, self.context_length)

    def _forget(self, context: Context) -> None:
        agent = next(agent for agent, held in self._contexts.items() if held is context)
        del self._contexts[agent]


def _cut_at_stop(request: Request) -> None:
    """Cuts the text before the first stop string, if one has come up."""
    places = [request.text.find(stop) for stop in request.sampling.stop]
    found = [place for place in places if place >= 0]
    if found:
        request.text, request.cut = request.text[: min(found)], True


def _emit(request: Request, hold: bool) -> str:
    """The text not handed out yet, less what may be the beginning of a stop string."""
    stop = len(request.text)
    if hold:
        stop -= max((_overlap(request.text, s) for s in request.sampling.stop), default=0)
    piece = request.text[request.num_emitted : max(stop, request.num_emitted)]
    request.num_emitted += len(piece)
    return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
