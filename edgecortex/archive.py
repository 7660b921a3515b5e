"""An engine's contexts on disk: saved while it goes on, loaded when a prompt begins with them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from edgecortex.errors import StoreError
from edgecortex.kv.blocks import BlockCodec, Snapshot
from edgecortex.kv.context import Attachment, Context, Mark
from edgecortex.kv.segment import KVSegment
from edgecortex.store.cache import Match, PersistentKVCache
from edgecortex.store.entry import Arrays, Chain, Entry, thought, window_of
from edgecortex.store.sessions import Session

Made = tuple[Entry, Callable[[], Arrays]]  # what is stored, and what makes it
MAX_PENDING_BYTES = 1 << 30  # of KV that waits to be written
REST_S = 0.016  # a block takes 2 to 3 ms to write: a twelfth of two cores


class Archive:
    """One model's and one format's part of a store. Call everything from the engine's thread;
    files are written by a thread of its own.

    `problem` is the last error of a save that nobody waits for. While `busy()`, a save that
    the engine does not wait for rests between blocks and leaves the machine to the answers.
    """

    def __init__(
        self,
        store: PersistentKVCache,
        codec: BlockCodec,
        fingerprint: str,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.store, self.codec = store, codec
        self.fingerprint, self.chain = fingerprint, Chain.of(fingerprint, codec.stored_as)
        self.problem: StoreError | None = None
        self._busy, self._awaited = busy, False
        self._writer = ThreadPoolExecutor(1, "edgecortex-write")
        self._pending: dict[Future[int], int] = {}
        self._start(store.tidy, 0)

    def close(self) -> None:
        """Waits until all that was saved is durable."""
        self._writer.shutdown()
        self.store.close()

    def wait(self, saves: "Sequence[Future[int]] | None" = None) -> None:
        """Waits for these saves, or for all so far."""
        self._awaited = True
        wait(list(self._pending) if saves is None else saves)
        self._awaited = False

    # Saving.

    def save(
        self, context: Context, tail: bool = False, session: Session | None = None
    ) -> "Future[int]":
        """Starts to store a context: its sealed blocks, and with `tail` the rest too.

        Args:
            session: a manifest to write when the context is durable.

        Returns: a future of the bytes written; once it has a result they are durable. Its error
            is a StoreError.
        """
        snapshot = self.codec.snapshot(context)
        nbytes = self.codec.pool.nbytes(context)
        return self._start(lambda: self._put(self._entries(snapshot, tail), session), nbytes)

    def save_session(self, session: Session, attached: Sequence[Attachment] = ()) -> "Future[int]":
        """Starts to write a manifest of KV that is stored already, and what is attached to it."""
        thoughts = {laid.id: self.codec.thought(laid.segment) for laid in attached}
        return self._start(lambda: self._put(self._thoughts(thoughts), session), 0)

    def _put(self, entries: Iterator[Made], session: Session | None) -> int:
        if session:  # nothing of it may go before the manifest is there
            self.store.index.pin(session.name, self.store.sessions.keys(session))
        written = self.store.put(entries)
        if session:
            self.store.sessions.write(session)
        return written

    def _thoughts(self, attached: Mapping[str, Arrays]) -> Iterator[Made]:
        for id, arrays in attached.items():
            yield thought(id, self.chain.root), partial(dict, arrays)

    def _entries(self, snapshot: Snapshot, tail: bool) -> Iterator[Made]:
        chain = replace(self.chain, marks=snapshot.marks)
        yield from self._thoughts(snapshot.attached)
        blocks = chain.blocks(snapshot.token_ids)
        for i, block in enumerate(blocks):
            yield block, partial(self._paced, partial(snapshot.block, i))
        first = max(0, len(blocks) - self.codec.num_windows)
        if self.codec.num_windows:
            for i in range(first, len(blocks)):
                yield window_of(blocks[i]), partial(self._paced, partial(snapshot.window, i))
        stop = chain.stop(len(blocks))
        if tail and (rest := snapshot.token_ids[stop:]):
            parent = blocks[-1].id if blocks else chain.root
            yield chain.tail(parent, rest, stop), snapshot.tail

    def _paced(self, make: Callable[[], Arrays]) -> Arrays:
        if self._busy() and not self._awaited:
            time.sleep(REST_S)
        return make()

    def _start(self, job: Callable[[], int | None], nbytes: int) -> "Future[int]":
        while sum((pending := self._pending.copy()).values()) > MAX_PENDING_BYTES:
            self.wait([next(iter(pending))])  # the writer removes it from those pending
        future: Future[int] = self._writer.submit(lambda: job() or 0)
        self._pending[future] = nbytes
        future.add_done_callback(self._done)
        return future

    def _done(self, future: "Future[int]") -> None:
        self._pending.pop(future, None)
        error = future.exception()
        if error:
            self.problem = error if isinstance(error, StoreError) else StoreError(repr(error))

    # Loading.

    def match(self, token_ids: Sequence[int], marks: Sequence[Mark] = ()) -> Match:
        """What is stored of the beginning of these tokens, where `marks` say what foreign they
        see; nothing if the store is unusable."""
        try:
            chain = replace(self.chain, marks=tuple(marks))
            return self.store.match(chain, token_ids, self.codec.num_windows)
        except StoreError as error:
            self.problem = error
            return Match()

    def load(self, context: Context, token_ids: Sequence[int], match: Match) -> None:
        """Puts what matched into an empty context.

        Raises:
            DamagedError: a file could not be used. It is out of the way now: match again.
        """
        entries = match.entries
        self.store.read_ahead(entries)
        loading = self.codec.loading(len(match.blocks))
        num_blocks, num_windows = len(match.blocks), len(match.windows)

        def take(i: int, arrays: Arrays) -> None:
            if i < num_blocks:
                loading.take_block(i, arrays)
            elif i < num_blocks + num_windows:
                loading.take_window(i - num_windows, arrays)
            else:
                loading.take_tail(arrays)

        self.store.read(entries, take)
        self.codec.pool.restore(
            context,
            token_ids[: match.num_tokens],
            loading.segments(context.base + self.codec.format.num_sinks),
            loading.layer_rows(),
        )
        self._start(lambda: self.store.touch(entries), 0)

    def load_thought(self, id: str, start: int, num_tokens: int) -> KVSegment:
        """A foreign segment that was saved.

        Raises:
            DamagedError: it is not there, or not whole.
        """
        found: list[KVSegment] = []

        def take(_: int, arrays: Arrays) -> None:
            found.append(self.codec.segment_of(arrays, start, num_tokens))

        self.store.read([thought(id, self.chain.root)], take)
        return found[0]
