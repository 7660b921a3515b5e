"""The engine's inside: single-threaded, one `step()` at a time."""

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import mlx.core as mx

from edgecortex.archive import Archive
from edgecortex.config import EngineConfig
from edgecortex.contexts import AgentContexts, Recalled
from edgecortex.errors import BudgetError, StoreError
from edgecortex.kv.blocks import BlockCodec
from edgecortex.kv.context import Context
from edgecortex.models.adapter import LoadedModel
from edgecortex.models.fingerprint import fingerprint
from edgecortex.paths import store_dir
from edgecortex.runner import ModelRunner
from edgecortex.sampling import sample
from edgecortex.scheduler import Request, Scheduler
from edgecortex.store.cache import PersistentKVCache
from edgecortex.warp.gate import RunningStates

if TYPE_CHECKING:
    from edgecortex.agent import Agent


class EngineCore:
    """Makes answers for many agents over one model. Call everything from one thread."""

    def __init__(self, model: LoadedModel, config: EngineConfig) -> None:
        self.model, self.config = model, config
        self.runner = ModelRunner(model, config)
        self.pool = self.runner.pool
        self.scheduler = Scheduler(config, self._admit, self._holds)
        self.contexts = AgentContexts(self.pool, self._open_archive(), config.share_prefixes)
        self.states = RunningStates()  # that gates have seen
        self._jobs: deque[Callable[[], object]] = deque()
        self.overhead_s = self.sample_s = 0.0  # so far, in steps

    @property
    def context_length(self) -> int:
        """The longest context, in tokens."""
        limit = self.model.context_length
        return min(limit, self.config.context_length or limit)

    @property
    def has_work(self) -> bool:
        return bool(self._jobs) or self.scheduler.has_work

    def defer(self, job: Callable[[], object]) -> None:
        """Has a job for side agents done between steps: one before each, as far as main agents
        keep their share."""
        self._jobs.append(job)

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

    def release(self, agent: "Agent") -> None:
        """Frees an agent's KV; an answer in progress ends as cancelled."""
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.agent is agent:
                self._finish(request, "cancelled")
        self.contexts.release(agent)

    def cancel_all(self, error: Exception) -> None:
        """Ends every answer as cancelled, with an error to raise; what was deferred is done, and
        what that ends with."""
        self._do_all()
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            self._finish(request, "cancelled", error)
        self._do_all()

    def _do_all(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def close(self) -> None:
        """Waits until what was saved is durable."""
        if self.contexts.archive:
            self.contexts.archive.close()

    def kv_nbytes(self, agent: "Agent") -> int:
        """Bytes of KV that an agent holds, shared segments in full."""
        context = self.contexts.get(agent)
        return self.pool.nbytes(context) if context else 0

    # One step.

    def step(self) -> None:
        """Schedule, run, postprocess."""
        self._do_job()
        start = time.perf_counter()
        self._drop_cancelled()
        batch = self.scheduler.schedule()
        if not batch:
            if not self._jobs:  # one of them may make room
                self._refuse_stuck()
            self._tell_read()
            return
        elsewhere, began = self.runner.model_s + self.sample_s, time.perf_counter()
        pending = [request.pending() for request, _ in batch]
        try:
            self._postprocess(*self._run(batch))
        except Exception as error:
            unfed = pending == [request.pending() for request, _ in batch]
            self._fail_step(batch, error, again=unfed and len(batch) > 1)
            self._tell_read()
            return
        now = time.perf_counter()
        self.overhead_s += now - start - (self.runner.model_s + self.sample_s - elsewhere)
        self.scheduler.observe(batch, now - began)
        self._tell_read()

    def _save_forks(self, batch: list[tuple[Request, int]]) -> None:
        """Stores what was read up to where other prompts go on in another way."""
        for request, _ in batch:
            assert request.context is not None
            if request.context.num_own in request.forks:
                request.forks.remove(request.context.num_own)
                self.contexts.save_fork(request.agent)

    def _do_job(self) -> None:
        if self._jobs and self.scheduler.spares_side():
            waits, start = self.scheduler.main_waits(), time.perf_counter()
            self._jobs.popleft()()
            if waits:
                self.scheduler.charge_side(time.perf_counter() - start)

    def _tell_read(self) -> None:
        """Tells whoever waits for it that a held answer's prompt is read."""
        for request in list(self.scheduler.running):
            if request.held and not request.wanted() and not request.told_read:
                request.told_read = True
                assert request.watcher
                request.watcher.has_read()

    def _run(self, batch: list[tuple[Request, int]]) -> tuple[list[Request], mx.array]:
        """Feeds the batch. Returns who gets a token, and the logits of just these."""
        by_context = {}
        feed = []
        for request, share in batch:
            assert request.context is not None
            by_context[request.context] = request
            feed.append((request.context, request.next_ids(share)))
        running = self.scheduler.running
        self.runner.reads_on = any(request.wanted() > 1 for request in running)
        contexts, logits = self.runner.run(feed)
        self._save_forks(batch)
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
            if request.generation.stats.finish_reason:
                continue  # it ended with another's
            try:
                if reason := self._take(request, token):
                    self._finish(request, reason)
            except Exception as error:  # whatever it is, it is this answer's own
                self._fail(request, error)

    def _take(self, request: Request, token: int) -> str | None:
        """Adds a token to an answer. Returns why the answer ends with it, if it does."""
        if token in self.model.tokenizer.eos_token_ids:
            return "stop"
        request.detokenizer.add_token(token)
        request.text += request.detokenizer.last_segment
        _cut_at_stop(request)
        piece = _emit(request, hold=not request.cut)
        request.generation.add_token(token, piece)
        if request.watcher and piece:
            request.watcher.heard(piece)
        if request.generation.stats.num_generated_tokens == 1 and self.pool.slides:
            self.contexts.save_blocks(request.agent)  # windows can be stored at their end only
        if request.cut:
            return "stop"
        stats = request.generation.stats
        if stats.num_generated_tokens >= request.sampling.max_tokens:
            return "length"
        assert request.context is not None
        return "context" if request.context.position + 1 >= self.context_length else None

    def _finish(self, request: Request, reason: str, error: Exception | None = None) -> None:
        if request.generation.stats.finish_reason:
            return  # it ended with another's
        self.scheduler.remove(request)
        request.generation.error = error
        if not request.cut:
            request.detokenizer.finalize()
            request.text += request.detokenizer.last_segment
            _cut_at_stop(request)
        if request.context is not None:
            self.pool.release(request.context)
            if error is None:
                self.contexts.save_blocks(request.agent)
        request.answered(None if error else request.text, request.cut)
        request.generation.finish(reason, _emit(request, hold=False))

    def _fail_step(self, batch: list[tuple[Request, int]], error: Exception, again: bool) -> None:
        """Ends the answers of a step; or has each take it `again` by itself, and ends those that
        fail once more. Whoever was fed several tokens ends: part of them may have been kept."""
        for request, share in batch:
            if request not in self.scheduler.running:
                continue
            try:
                if not again or share > 1:
                    raise error
                self._postprocess(*self._run([(request, share)]))
            except Exception as own:
                self._fail(request, own)

    def _fail(self, request: Request, error: Exception) -> None:
        """Ends an answer with an error and lets its KV go: nobody knows how far it got."""
        self._finish(request, "error", error)
        self.contexts.renew(request.agent)

    def _drop_cancelled(self) -> None:
        for request in [*self.scheduler.running, *self.scheduler.waiting]:
            if request.generation.cancelled:
                self._finish(request, "cancelled")

    # Admission.

    def _admit(self, request: Request) -> bool:
        """Whether there is room for a request; one for which that cannot be found out fails."""
        try:
            return self._find_context(request)
        except Exception as error:  # whatever it is, it is this answer's own
            self._fail(request, error)
            return False

    def _find_context(self, request: Request) -> bool:
        """Finds the request a context with what is already known of its prompt. One that found no
        room is not looked at again before there is another."""
        if request.refused_at == self.pool.num_freed:
            return False
        found = self.contexts.recall(request.agent, request.prompt_ids, self._longest(request))
        if found is None:
            request.refused_at = self.pool.num_freed
            return False
        request.context = found.context
        if request.watcher:
            request.watcher.admitted(found.context)
        stats = request.generation.stats
        stats.num_prompt_tokens = len(request.prompt_ids)
        stats.num_memory_tokens = found.num_memory_tokens
        stats.num_disk_tokens = found.num_disk_tokens
        request.forks = self._forks(request, found)
        return True

    def _forks(self, request: Request, found: Recalled) -> set[int]:
        """Where others have left this prompt and, as layers slide a window, have let go of what
        one has to begin with there: it is stored when this one gets there."""
        if not self._stores_forks or found.context.base or found.context.attached:
            return set()
        ids, running = request.prompt_ids[:-1], self.scheduler.running
        prompts = [other.prompt_ids for other in running if not other.side]
        known = [found.num_known, self.contexts.num_of_others(request.agent, ids)]
        known += [self.contexts.shared_len(prompt, ids) for prompt in prompts]
        longest = {found.num_known, max(known)}
        return {length for length in longest if length > found.context.num_own}

    @property
    def _stores_forks(self) -> bool:
        archive = self.contexts.archive
        return self.pool.slides and archive is not None and archive.problem is None

    def _holds(self, request: Request) -> bool:
        """Whether to wait: another prompt that is being read begins as this one does, so that
        soon its blocks can be shared."""
        can_share = self._stores_forks if self.pool.slides else self.contexts.shares
        if request.side or not can_share:
            return False  # what lies elsewhere, or before a window, could not be shared
        ids = request.prompt_ids[:-1]
        running = self.scheduler.running
        if self.contexts.forks_to_come(request.agent, ids) and any(r.wanted() for r in running):
            return True
        readers = [r for r in running if r.pending() > 1 and self._can_share(r, request)]
        shared = {r: self.contexts.shared_len(r.prompt_ids, ids) for r in readers}
        coming = {r: n for r, n in shared.items() if r.context and n > r.context.num_own}
        reader = max(coming, key=lambda r: coming[r], default=None)
        if not reader or coming[reader] <= self.contexts.num_resident(request.agent, ids):
            return False
        if request.num_stored is None:
            request.num_stored = self.contexts.num_on_disk(ids)
        if coming[reader] <= request.num_stored:
            return False
        if self.pool.slides:
            reader.forks.add(coming[reader])
        return True

    def _can_share(self, reader: Request, request: Request) -> bool:
        """Whether what one reads may be of use to another, that does not go before it."""
        plain = reader.context and not reader.context.attached
        return bool(plain) and not reader.side and reader.priority <= request.priority

    def _refuse_stuck(self) -> None:
        """Nobody runs, and the first in line finds no room: it never will. Where an answer is held
        it is for side agents to give way: the others will have its room."""
        held = any(request.held for request in self.scheduler.running)
        stuck = [request for request in self.scheduler.waiting if request.side or not held]
        if stuck:
            request = stuck[0]
            error = BudgetError(
                f"no room for agent {request.agent.name!r}: {self.pool.free_bytes:,} bytes of "
                f"the KV budget of {self.pool.max_bytes:,} are free and nobody else is running; "
                "close agents or raise the budget"
            )
            self._finish(request, "error", error)

    def _longest(self, request: Request) -> int:
        return min(request.max_tokens, self.context_length)

    def _open_archive(self) -> Archive | None:
        """The store, if it is wanted; one that cannot be used is noted in `store_problem`."""
        self.store_problem: StoreError | None = None
        if not self.config.use_store:
            return None
        try:
            folder = self.config.store_path or store_dir()
            store = PersistentKVCache(folder, self.config.store_max_bytes)
            codec = BlockCodec(self.pool, self.runner.shapes)
            name = fingerprint(self.model.path)
            return Archive(store, codec, name, busy=lambda: self.scheduler.has_work)
        except StoreError as error:
            self.store_problem = error
            return None


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
