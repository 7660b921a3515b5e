"""The part of the memory benchmark that is on disk.

One context is read for real. The others are stored with the same arrays under token ids of their
own after the prefix: contents do not matter to sizes. Sizes are those of the files.
"""

import shutil
from pathlib import Path

from edgecortex.bench.asking import archive_in, ask, context_of, finish, open_core, passage
from edgecortex.bench.report import Row
from edgecortex.bench.side import serve, size_of
from edgecortex.core import EngineCore
from edgecortex.kv.context import Context
from edgecortex.sessions import archive_of


def disk(path: str, folder: str, tokens: int, prefix_tokens: int, agents: int) -> list[Row]:
    """Rows of one agent's store, and of many agents in one store and in separate ones."""
    root = Path(folder)
    core = open_core(path, str(root / "first"), tokens)
    request = ask(core, passage(core, tokens), 1)
    finish(core, request)
    context = context_of(request, tokens)
    archive_of(core).save(context, tail=True).result()
    core.close()
    vocab = max(context.token_ids) + 1
    everyone = [_own_ids(context.token_ids, prefix_tokens, i, vocab) for i in range(agents)]
    together = _stored(core, context, root / "together", everyone)
    separate = [_stored(core, context, root / "separate", [ids]) for ids in everyone]
    about = {"tokens": tokens, "prefix_tokens": prefix_tokens, "agents": agents}
    parts = enumerate(("one prefix on disk", "one prefix, blocks only"))
    shared = [
        {"what": what, **about, **_share(together[part], sum(one[part] for one in separate))}
        for part, what in parts
    ]
    return [*_bits(core, context, root / "first"), *shared]


def _share(together: int, separate: int) -> Row:
    pct = 100 * together / separate
    return {"bytes": together, "separate_bytes": separate, "pct_of_separate": pct}


def _own_ids(ids: list[int], prefix_tokens: int, number: int, vocab: int) -> list[int]:
    """The prefix, and after it tokens that no other agent has."""
    return ids[:prefix_tokens] + [(i + number) % vocab for i in ids[prefix_tokens:]]


def _stored(
    core: EngineCore, context: Context, folder: Path, everyone: list[list[int]]
) -> tuple[int, int]:
    """Bytes of a new store with this context under each of these ids: with tails, index and all,
    and of its blocks and windows. It is removed then."""
    archive = archive_in(core, folder)
    for ids in everyone:
        context.token_ids = list(ids)
        archive.save(context, tail=True).result()
    archive.close()
    num_bytes = size_of(folder), _in_blocks(folder)
    shutil.rmtree(folder)
    return num_bytes


def _in_blocks(store: Path) -> int:
    return size_of(store, "*.block.safetensors") + size_of(store, "*.window.safetensors")


def _bits(core: EngineCore, context: Context, store: Path) -> list[Row]:
    """Bits a value: of the blocks and windows, with the tail, with all else of the store."""
    sealed, tail = _num_values(core, context)
    in_blocks = _in_blocks(store)
    in_tail = size_of(store, "*.tail.safetensors")
    parts = [
        ("blocks on disk", in_blocks, sealed),
        ("with the tail", in_blocks + in_tail, sealed + tail),
        ("with tail and index", size_of(store), sealed + tail),
    ]
    return [
        {
            "what": what,
            "tokens": context.num_own,
            "bytes": num_bytes,
            "values": values,
            "bits_per_value": 8 * num_bytes / values,
        }
        for what, num_bytes, values in parts
    ]


def _num_values(core: EngineCore, context: Context) -> tuple[int, int]:
    """How many K and V values are in blocks and windows, sinks included, and in the tail."""
    format = core.pool.format
    sealed = format.num_sealed(context.num_own)
    rest = context.num_own - sealed - format.num_sinks
    most = archive_of(core).codec.num_windows * format.block
    in_blocks = in_tail = 0
    for window, (heads, k_dim, v_dim, _) in zip(core.pool.windows, core.runner.shapes, strict=True):
        held = sealed if window is None else min(sealed, most)
        in_blocks += (format.num_sinks + held) * heads * (k_dim + v_dim)
        in_tail += rest * heads * (k_dim + v_dim)
    return in_blocks, in_tail


if __name__ == "__main__":
    serve({"disk": disk})
