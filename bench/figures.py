"""What each figure of a benchmark means, and what it is held against: the one place for both."""

from dataclasses import dataclass

PUBLISHED_KV = "arXiv 2603.04428"  # a persistent 4-bit KV cache, measured on an M4 Pro
PUBLISHED_CORTEX = "the Warp-Cortex paper"
MORE, LESS = "more", "less"
_HOMES = {"gate": "injection"}  # figures that another benchmark gives


@dataclass(frozen=True)
class Figure:
    """`unit` is empty for a plain ratio; `better` is MORE or LESS; `target` None: it is shown,
    and held against nothing."""

    meaning: str
    better: str
    target: float | None = None
    against: str = ""
    unit: str = ""

    @property
    def goal(self) -> str:
        """The target, such as `≤ 1.25`."""
        if self.target is None:
            return ""
        return f"{'≥' if self.better == MORE else '≤'} {self.target:g}"

    def verdict(self, value: float | None) -> str:
        """Whether a value reaches the target, in words; None stands for what is no number."""
        if self.target is None:
            return ""
        if value is None:
            return "not reached"
        reached = value >= self.target if self.better == MORE else value <= self.target
        return "reached" if reached else "not reached"


FIGURES = {
    "ttft.warm_over_limit": Figure(
        "first token with the context on disk ÷ plain reads of the same bytes and one decode "
        "step; the worst size from 512 tokens on",
        LESS,
        1.25,
        "the machine: 1",
    ),
    "ttft.cold_over_warm_8k": Figure(
        "first token with 8,192 tokens read anew ÷ with their KV on disk, in new processes",
        MORE,
        136,
        f"{PUBLISHED_KV}: 136 from memory and 95 from disk, at 32K tokens",
    ),
    "ttft.cold_4k_over_mlx_lm": Figure(
        "first token with 4,096 tokens read anew ÷ mlx-lm's, same weights and BLAS",
        LESS,
        0.6,
        "mlx-lm: 1",
    ),
    "ttft.cold_4k_over_llama_cpp": Figure(
        "first token with 4,096 tokens read anew ÷ llama.cpp's, on the same GGUF file",
        LESS,
        1.5,
        "llama.cpp: 1",
    ),
    "ttft.hot_over_step": Figure(
        "first token with the context in memory ÷ one decode step; the worst size",
        LESS,
        1.2,
        "the machine: 1",
    ),
    "ttft.saving_slowdown_pct": Figure(
        "how much slower four agents decode while a context is stored", LESS, 10, "none: 0", "%"
    ),
    "decode.alone_over_mlx_lm": Figure(
        "tokens per second of one agent at 512 tokens ÷ mlx-lm's, same weights and BLAS",
        MORE,
        1,
        "mlx-lm: 1",
    ),
    "decode.equal16_over_1": Figure(
        "tokens per second of 16 agents at 64 tokens, together ÷ of one", MORE, 10, "linear: 16"
    ),
    "decode.equal16_over_mlx_lm": Figure(
        "tokens per second of 16 agents at 64 tokens ÷ mlx-lm's batch, in full precision",
        MORE,
        1,
        "mlx-lm: 1",
    ),
    "decode.mixed16_over_equal16": Figure(
        "tokens per second of one agent at 1,024 tokens and 15 at 64 ÷ of 16 at 64",
        MORE,
        0.85,
        "no padding at all: 1",
    ),
    "decode.mixed16_over_mlx_lm": Figure(
        "tokens per second of one agent at 1,024 tokens and 15 at 64 ÷ mlx-lm's batch",
        MORE,
        20,
        "mlx-lm: 1",
    ),
    "decode.prefix64_memory": Figure(
        "KV memory of 64 agents on one prefix of 1,024 tokens ÷ one prefix and 64 tails",
        LESS,
        1.1,
        "one prefix: 1",
    ),
    "decode.prefix64_over_private": Figure(
        "tokens per second of 64 agents on one prefix of 1,024 tokens ÷ on copies of it",
        MORE,
        4,
        "copies: 1",
    ),
    "decode.gap_during_prefill": Figure(
        "time between tokens of eight agents while a ninth reads 4,096 ÷ without it; the worse "
        "of median and 95th percentile",
        LESS,
        3,
        "undisturbed: 1",
    ),
    "decode.overhead_pct": Figure(
        "share of a step of 16 agents outside forward pass and sampling", LESS, 5, "none: 0", "%"
    ),
    "memory.disk_bits_per_value": Figure(
        "bits that a stored key or value takes in its block's file, all in",
        LESS,
        4.6,
        "16-bit floats: 16",
        "bits",
    ),
    "memory.shared_prefix_disk_pct": Figure(
        "disk that 50 agents take whose first half is shared ÷ nothing shared",
        LESS,
        55,
        "half of it shared: 50",
        "%",
    ),
    "memory.gemma3_12b_agents_8k": Figure(
        "agents of 8,192 tokens, with the KV geometry of Gemma 3 12B, in 10.2 GB",
        MORE,
        34,
        f"{PUBLISHED_KV}: 12",
        "agents",
    ),
    "quality.kl": Figure(
        "KL divergence per token from full-precision KV, in this format; the worst length",
        LESS,
        0.006,
        "full precision: 0",
        "nats",
    ),
    "quality.ppl_pct": Figure(
        "rise of perplexity over full-precision KV, in this format; the worst length",
        LESS,
        0.5,
        "full precision: 0",
        "%",
    ),
    "quality.bits_per_value": Figure(
        "bits that a sealed key or value takes in memory, all in",
        LESS,
        4.5,
        "16-bit floats: 16",
        "bits",
    ),
    "council.mb_per_stream_100": Figure(
        "growth of the process per Stream, of 100 Streams on one River, when each has said 8 "
        "tokens",
        LESS,
        2,
        f"{PUBLISHED_CORTEX}: 10 to 13",
        "MB",
    ),
    "council.river_share_16": Figure(
        "tokens per second of the River beside 16 busy Streams ÷ alone",
        MORE,
        0.8,
        f"{PUBLISHED_CORTEX}: “near-baseline”",
    ),
    "council.thought_gap": Figure(
        "longest time between two tokens of the River while a Stream is given a task, thinks and "
        "its thought is injected ÷ the median one alone",
        LESS,
        3,
        "undisturbed: 1",
    ),
    "synapse.gap_closed": Figure(
        "share of what 4 sinks and 124 recent tokens lose to the whole context that 128 landmarks "
        "get back, in log-likelihood of what follows",
        MORE,
        0.5,
        "sinks and recent tokens: 0",
    ),
    "gate.auc": Figure(
        "chance that the gate scores a relevant thought above an irrelevant one",
        MORE,
        0.9,
        "guessing: 0.5",
    ),
    "injection.effect_share": Figure(
        "effect of an injected thought on the answer it is about ÷ of the same text pasted",
        MORE,
        0.8,
        "pasted text: 1",
    ),
    "injection.unrelated_kl": Figure(
        "KL divergence per token that an injected thought causes in an unrelated continuation",
        LESS,
        0.01,
        "nothing injected: 0",
        "nats",
    ),
    "roofline.decode1_share": Figure(
        "share of the machine's limit that a decode step of one agent reaches",
        MORE,
        against="the machine: 1",
    ),
    "roofline.decode16_share": Figure(
        "share of the machine's limit that a decode step of 16 agents reaches",
        MORE,
        against="the machine: 1",
    ),
    "roofline.prefill_share": Figure(
        "share of the machine's limit that reading the longest prompt reaches",
        MORE,
        against="the machine: 1",
    ),
    "workflow.prisoners_dilemma_speedup": Figure(
        "first token in the later ones of five phases with new agents ÷ with those kept", MORE
    ),
    "workflow.experts_speedup": Figure(
        "first token of questions to ten experts who read a chapter each, new ones ÷ those kept",
        MORE,
    ),
    "blas.prefill512_speedup": Figure(
        "time to read 512 tokens with the BLAS of MLX's wheel ÷ with ours", MORE
    ),
}

# What the sides of `compare` are held against each other in, and in whose favour.
_PEERS = {
    "mlx_lm": "mlx-lm",
    "mlx_lm_4bit": "mlx-lm with 4-bit KV",
    "llama_cpp": "llama.cpp",
    "llama_cpp_q4_0": "llama.cpp with q4_0 KV",
}
_PLAIN, _QUANTIZED = ("mlx_lm", "llama_cpp"), ("mlx_lm_4bit", "llama_cpp_q4_0")
_COMPARED = {
    "ttft_cold": ("first token with the longest context read anew", LESS, _PLAIN),
    "ttft_restored": ("first token with the longest context on disk", LESS, _PLAIN),
    "decode1": ("tokens per second of one agent at 64 tokens", MORE, _PLAIN),
    "decode4": ("tokens per second of 4 agents at 64 tokens", MORE, _PLAIN),
    "decode8": ("tokens per second of 8 agents at 64 tokens", MORE, _PLAIN),
    "decode16": ("tokens per second of 16 agents at 64 tokens", MORE, _PLAIN),
    "mixed4": ("tokens per second of one agent at 256 tokens and 3 at 64", MORE, _PLAIN),
    "mixed16": ("tokens per second of one agent at 1,024 tokens and 15 at 64", MORE, _PLAIN),
    "kv_bytes": ("memory that the longest context's KV takes", LESS, _QUANTIZED),
    "disk_bytes": ("disk that the longest context's KV takes", LESS, (*_PLAIN, *_QUANTIZED)),
    "kl": ("KL divergence per token from full-precision KV", LESS, _QUANTIZED),
    "peak_memory": ("peak memory of a process that reads the context", LESS, _PLAIN),
}
FIGURES |= {
    f"compare.{name}_over_{peer}": Figure(
        f"{meaning} ÷ that of {_PEERS[peer]}",
        better,
        1,
        f"{_PEERS[peer]}: 1",
    )
    for name, (meaning, better, peers) in _COMPARED.items()
    for peer in peers
}


def figures_of(benchmark: str) -> list[str]:
    """The names of all that a benchmark can give."""
    homes = {name: name.partition(".")[0] for name in FIGURES}
    return [name for name, home in homes.items() if _HOMES.get(home, home) == benchmark]
