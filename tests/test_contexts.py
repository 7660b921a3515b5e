"""Contexts that come back from disk, where what is there is damaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecortex.archive import Archive
from edgecortex.config import EngineConfig
from edgecortex.contexts import AgentContexts
from edgecortex.errors import StoreError
from edgecortex.kv.blocks import BlockCodec
from edgecortex.runner import ModelRunner
from edgecortex.store.cache import PersistentKVCache
from tests import tiny

IDS = np.random.default_rng(1).integers(0, tiny.VOCAB, 300).tolist()  # four blocks and a tail


@pytest.fixture
def contexts(tmp_path: Path) -> Iterator[AgentContexts]:
    """Those of an engine whose store has a context with these tokens."""
    runner = ModelRunner(tiny.make("llama"), EngineConfig(kv_budget_bytes=1 << 28))
    codec = BlockCodec(runner.pool, runner.shapes)
    archive = Archive(PersistentKVCache(tmp_path), codec, "a model")
    context = runner.pool.open()
    runner.run([(context, IDS)])
    archive.save(context, tail=True).result()
    runner.pool.close(context)
    yield AgentContexts(runner.pool, archive)
    archive.close()


def damage(contexts: AgentContexts, index: int) -> None:
    assert contexts.archive
    store, found = contexts.archive.store, contexts.archive.match(IDS).entries
    store.path_of(found[index]).write_bytes(b"damage")


def num_recalled(contexts: AgentContexts) -> int:
    agent: Any = "somebody"
    found = contexts.recall(agent, [*IDS, 0], len(IDS) + 1)
    assert found
    return found.num_disk_tokens


def test_a_damaged_block_costs_what_comes_after_it(contexts: AgentContexts) -> None:
    assert num_recalled(contexts) == 300
    contexts.release("somebody")  # type: ignore[arg-type]
    damage(contexts, 2)
    damage(contexts, 3)
    assert num_recalled(contexts) == 132


def test_a_damaged_block_that_cannot_be_set_aside_is_not_read_for_ever(
    contexts: AgentContexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that is full or cannot be written: the index then goes on to name it."""
    calls = []

    def remove(keys: object) -> None:
        calls.append(keys)
        assert len(calls) < 9, "it goes on for ever"
        raise StoreError("the disk is full")

    damage(contexts, 1)
    assert contexts.archive
    monkeypatch.setattr(contexts.archive.store.index, "remove", remove)
    assert num_recalled(contexts) == 0
    assert calls
