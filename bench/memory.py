"""What KV takes: bits a value on disk, what agents with one prefix share there, and how many
agents of a large model fit in memory."""

from collections.abc import Callable

from edgecortex.bench import side
from edgecortex.bench.journal import work_folder
from edgecortex.bench.report import Report, Row, make_report
from edgecortex.models import resolve

# Fifty agents of 4,096 tokens, the first 2,048 of which are the same.
STORED = {"tokens": 4096, "prefix_tokens": 2048, "agents": 50}
STORED_QUICK = {"tokens": 2048, "prefix_tokens": 1024, "agents": 50}
BUDGET = 10_200_000_000  # bytes of KV for the agents in memory
AGENT_TOKENS = (4096, 8192, 16384, 32768)
PUBLISHED = {8192: 12}  # agents of that length in that budget, arXiv 2603.04428
# Layers are alike but for the window of all but every `full_every`th; dimensions are of K and V.
GEMMA3_12B = {
    "layers": 48,
    "kv_heads": 8,
    "head_dim": 256,
    "window": 1024,
    "full_every": 6,
}
OURS = "EdgeCortex kv4"
Progress = Callable[[str], None]


def measure(model: str, progress: Progress, quick: bool = False) -> Report:
    """Measures all three; with `quick` the first two, on agents of half as many tokens.

    Raises:
        EdgeCortexError: a part failed, or the machine has too little memory free.
    """
    path, stored = str(resolve(model)), STORED_QUICK if quick else STORED
    progress(f"storing {stored['agents']} agents of {stored['tokens']:,} tokens")
    with work_folder() as folder:
        made = f"{folder}/stores"
        rows: list[Row] = side.run(
            "memory_disk", "disk", makes=made, path=path, folder=made, **stored
        )
    for tokens in () if quick else AGENT_TOKENS:
        progress(f"agents of {tokens:,} tokens into {BUDGET / 1e9:.1f} GB of memory")
        rows += agents(tokens, BUDGET, GEMMA3_12B)
    settings = {"model": model, "stored": stored, "budget_bytes": BUDGET, "geometry": GEMMA3_12B}
    return make_report("memory", settings, _figures(rows), rows)


def agents(tokens: int, max_bytes: int, geometry: dict[str, int]) -> list[Row]:
    """How many agents of a length fit: ours, counted; mlx-lm's, by arithmetic; the published."""
    ours = side.run("memory_agents", "fill", tokens=tokens, max_bytes=max_bytes, geometry=geometry)
    stock = stock_nbytes(tokens, **geometry)
    published = PUBLISHED.get(tokens) if (max_bytes, geometry) == (BUDGET, GEMMA3_12B) else None
    counts = [
        (OURS, ours.pop("agents"), ours.pop("agent_bytes")),
        ("mlx-lm fp16, by arithmetic", max_bytes // stock, stock),
        ("arXiv 2603.04428, as published", published, None),
    ]
    rows: list[Row] = [
        {
            "what": "agents in memory",
            "tokens": tokens,
            "system": system,
            "agents": count,
            "agent_bytes": nbytes,
        }
        for system, count, nbytes in counts
    ]
    return [*rows, {"what": "memory they took", "tokens": tokens, "system": OURS, **ours}]


def stock_nbytes(
    tokens: int, layers: int, kv_heads: int, head_dim: int, window: int, full_every: int
) -> int:
    """Bytes of an agent with mlx-lm's own caches in fp16: all of its tokens on the layers
    without a window, a rotating cache of the window on the others."""
    num_full = layers // full_every
    held = num_full * tokens + (layers - num_full) * min(tokens, window)
    return held * kv_heads * 2 * head_dim * 2


def _figures(rows: list[Row]) -> dict[str, float]:
    """Those that the rows allow."""

    def first(key: str, **wanted: object) -> float | None:
        return next((row[key] for row in rows if wanted.items() <= row.items()), None)

    agents = first("agents", what="agents in memory", tokens=8192, system=OURS)
    figures = {
        "memory.disk_bits_per_value": first("bits_per_value", what="blocks on disk"),
        "memory.shared_prefix_disk_pct": first("pct_of_separate", what="one prefix on disk"),
        "memory.gemma3_12b_agents_8k": agents,
    }
    return {name: value for name, value in figures.items() if value is not None}
