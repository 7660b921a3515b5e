"""What commands that keep a session have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgecortex.errors import ConfigError
from edgecortex.paths import store_dir

if TYPE_CHECKING:
    from edgecortex.store.cache import PersistentKVCache
    from edgecortex.store.sessions import Session


@contextmanager
def store() -> "Iterator[PersistentKVCache]":
    """The user's store, closed at the end. What goes into it stays within an engine's budget.

    Raises:
        StoreError: it cannot be used.
    """
    from edgecortex.config import EngineConfig
    from edgecortex.store.cache import PersistentKVCache

    found = PersistentKVCache(store_dir(), EngineConfig.store_max_bytes)
    try:
        yield found
    finally:
        found.close()


@contextmanager
def opened(name: str | None, no_cache: bool = False) -> "Iterator[Session | None]":
    """A session, kept from other processes while the block runs: None if it is yet to begin.

    Raises:
        ConfigError: a session without a store.
        StoreError: no name, a damaged session, or one that another process has.
    """
    if name is None:
        yield None
        return
    if no_cache:
        raise ConfigError("--session needs the store: leave out --no-cache")
    with store() as found, found.sessions.locked(name):
        yield found.sessions.load(name) if name in found.sessions.names() else None
