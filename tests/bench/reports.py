"""Small made-up reports of every benchmark, in the shape that the real ones have."""

from typing import Any

MACHINE = {
    "system": "Linux x86_64",
    "device": "CPU (made up)",
    "num_cpus": 2,
    "memory_bytes": 8_000_000_000,
}
ROWS: dict[str, list[dict[str, Any]]] = {
    "ttft": [
        {"what": "ttft", "state": state, "tokens": n, "new_tokens": 1, "ttft_s": n * seconds}
        for state, seconds in (("cold", 0.002), ("warm", 1e-4), ("hot", 5e-5), ("mlx_lm", 0.004))
        for n in (512, 2048)
    ],
    "decode": [
        {"round": turn, "side": side, "scenario": name, "tokens_per_s": rate + turn}
        for turn in (1, 2)
        for side, name, rate in (
            ("ours", "alone", 20.0),
            ("ours", "equal16", 150.0),
            ("mlx_lm", "alone", 18.0),
        )
    ],
    "memory": [
        {"what": "blocks on disk", "tokens": 4096, "bits_per_value": 4.52},
        *(
            {"what": "agents in memory", "tokens": 8192, "system": system, "agents": agents}
            for system, agents in (("EdgeCortex kv4", 37), ("mlx-lm fp16", 11), ("paper", None))
        ),
    ],
    "quality": [
        {"tokens": n, "format": name, "kl": kl}
        for n in (1024, 4096)
        for name, kl in (("fp", 0.0), ("kv4", 0.004), ("mlx-lm 4-bit", 0.15))
    ],
    "synapse": [
        {"rule": name, "gap_closed": share, "gap_closed_se": 0.05}
        for name, share in (("full", 1.0), ("matched", 0.6), ("sinks+recent", 0.0))
    ],
    "injection": [
        {"way": "nothing", "effect_share": 0.0, "effect_share_se": 0.0},
        {"way": "forward", "effect_share": 0.9, "effect_share_se": 0.1},
        {"score": "the gate's", "auc": 0.93},
    ],
    "council": [
        *(
            {"what": "memory", "model": "m", "streams": n, "mb_per_stream": 1.5}
            | {"published_mb": published}
            for n, published in ((10, 12), (100, None))
        ),
        *(
            {"what": "speed", "streams": n, "round": turn, "river_share": share}
            for n in (0, 16)
            for turn, share in enumerate((0.9, 0.8, 1.0), 1)
        ),
    ],
    "compare": [
        {"what": "ratio", "metric": "decode1", "at": "decode1", "over": "mlx-lm", "ratio": 1.2}
    ],
    "roofline": [
        {"what": "machine", "rate_of": "memory, read", "per_s": 1e10, "unit": "bytes"},
        {"what": "limit", "limit_of": "decode, 1", "share": 0.6},
    ],
    "workflow": [
        {"workflow": name, "round": 1, "phase": phase, "ttft_kept_s": 0.1, "ttft_cold_s": 0.4}
        for name in ("prisoners-dilemma", "experts")
        for phase in ("first", "second")
    ],
    "blas": [{"blas": name, "ttft_s": s} for name, s in (("ours", 0.8), ("wheel", 30.0))],
}
FIGURES = {
    "ttft": {"ttft.warm_over_limit": 1.2, "ttft.hot_over_step": 1.3},
    "decode": {"decode.alone_over_mlx_lm": 1.1},
    "memory": {"memory.gemma3_12b_agents_8k": 37},
    "quality": {"quality.kl": 0.004},
    "synapse": {"synapse.gap_closed": 0.6},
    "injection": {"gate.auc": 0.93, "injection.effect_share": 0.9},
    "council": {"council.mb_per_stream_100": 1.5, "council.river_share_16": 0.9},
    "compare": {"compare.decode1_over_mlx_lm": 1.2, "compare.kl_over_mlx_lm_4bit": 0.03},
    "roofline": {"roofline.decode1_share": 0.6},
    "workflow": {"workflow.experts_speedup": 4.0},
    "blas": {"blas.prefill512_speedup": 37.5},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ttft": {"contexts": [512, 2048], "definitions": {"cold": "all tokens are read"}},
    "memory": {"budget_bytes": 10_200_000_000},
    "synapse": {"kept": 128},
}


def made(benchmark: str, **changed: Any) -> dict[str, Any]:
    """A report of a benchmark, with parts of it changed."""
    report = {
        "benchmark": benchmark,
        "date": "2026-01-02T03:04:05+00:00",
        "machine": MACHINE,
        "versions": {"edgecortex": "1.2.3", "mlx": "0.32.4", "mlx-lm": None},
        "settings": {"model": "some-model", **SETTINGS.get(benchmark, {})},
        "figures": dict(FIGURES[benchmark]),
        "spread": {},
        "rows": ROWS[benchmark],
    }
    return report | changed
