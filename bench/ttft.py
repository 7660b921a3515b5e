"""Time to the first token of a context that is read anew, on disk, or in memory.

Every job is a process of its own: ours and mlx-lm's in turns, size by size, round by round.
"""

import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgecortex.bench import side
from edgecortex.bench.journal import work_folder
from edgecortex.bench.phases import STAGES
from edgecortex.bench.report import Report, Row, make_report, median, spread
from edgecortex.errors import EdgeCortexError
from edgecortex.models import resolve
from edgecortex.models.adapter import compute_dtype

NEW_TOKENS = (1, 16)  # the figures are about the first; the others are measured once
MLX_LM_MOST = 4096  # tokens; it would take minutes beyond
SAVED_MOST = 4096  # tokens of the context that is stored while agents decode,
SAVING_ROUNDS = 5  # with and without, so many times
LIMIT_FROM = 512  # tokens; `ttft.warm_over_limit` counts sizes from here on
# Reading a token with the rest of a prompt and reading it alone differ in rounding only. Where
# a model computes in fp32 that comes to 3e-4 nats, for keys and values are rounded to 16 bits; one
# wrong block of 64 tokens costs the next token 1e-3 to 0.2, the less the longer the context. 16-bit
# floats keep 8 bits of a logit at worst: 1e-3 by itself.
MAX_KL_FP32, MAX_KL_16_BITS = 2e-3, 1e-2
NEAR_TIE = 0.02  # nats between two tokens, either of which rounding may put first
DEFINITIONS = {
    "cold": "a new process, the model loaded, nothing stored: all tokens are read",
    "warm": "a new process, the model loaded, the KV of all context tokens on disk and in the "
    "page cache",
    "dropped": "as warm, but the page cache of the store's files was dropped",
    "hot": "the process has the context in memory",
    "new_tokens": "tokens after the context, read in each state",
    "ttft_s": "from the request's submission to its first token",
    "limit_s": "plain reads of the same files, in the same state of the page cache and a new "
    "process, and one decode step at that length",
    "match_s … other_s": "one after the other; read_s (with open_s in it), verify_s and copy_s are "
    "sums over the reading threads, within files_s",
}
Times = dict[tuple[str, int, int], list[Row]]  # by state, context tokens, new tokens
Progress = Callable[[str], None]


def measure(
    model: str,
    contexts: Sequence[int],
    repeat: int,
    progress: Progress,
    gguf: Path | None = None,
    whole: bool = True,
) -> Report:
    """Measures all states at these context lengths, in tokens; times are medians.

    Args:
        whole: measure also without the page cache, with more new tokens than one, and what is
            read anew in every round, not in the first alone.
        gguf: the file that the model was imported from, for llama.cpp; `model` may be that too.

    Raises:
        EdgeCortexError: a part failed, or a restored context says something else.
    """
    path, given = str(resolve(model)), given_gguf(gguf, model)
    times: Times = defaultdict(list)
    with work_folder() as folder:
        rounds = _Rounds(path, given, Path(folder), times, progress, whole)
        rounds.save(contexts)
        for number in range(1, repeat + 1):
            for tokens in contexts:
                rounds.measure(tokens, number, f"round {number} of {repeat}")
        saved = max((n for n in contexts if n <= SAVED_MOST), default=contexts[0])
        savings = rounds.saving(saved)
    settings = {
        "model": model,
        "contexts": list(contexts),
        "repeat": repeat,
        "dropped": _dropping() if whole else "left out",
        "llama.cpp": llama_cpp_told(gguf, model),
        "max_kl": max_kl(),
        "near_tie_nats": NEAR_TIE,
        "definitions": DEFINITIONS,
    }
    rows = [*_rows(times), *savings]
    figures = _figures(rows)
    by_round = [_figures(_rows(_round(times, number))) for number in range(repeat)]
    by_round += [_figures([saving]) for saving in savings]
    return make_report("ttft", settings, figures, rows, spread(figures, by_round))


def given_gguf(gguf: Path | None, model: str) -> str | None:
    """The file for llama.cpp, where one is given and llama.cpp is installed."""
    path = Path(gguf or model).expanduser()
    given = path.suffix == ".gguf" and importlib.util.find_spec("llama_cpp")
    return str(path) if given else None


def llama_cpp_told(gguf: Path | None, model: str) -> str:
    """Whether llama.cpp is measured, in words."""
    if given := given_gguf(gguf, model):
        return f"measured on {Path(given).name}"
    if importlib.util.find_spec("llama_cpp") is None:
        return "not measured: llama_cpp is not installed"
    return (
        "not measured: expected the .gguf file that the model was imported from, "
        f"got {str(gguf or model)!r}"
    )


def _dropping() -> str:
    return "measured" if hasattr(os, "posix_fadvise") else "left out: no posix_fadvise here"


class _Rounds:
    """Runs the jobs of one size after the other and collects what they give."""

    def __init__(
        self,
        path: str,
        gguf: str | None,
        folder: Path,
        times: Times,
        progress: Progress,
        whole: bool,
    ) -> None:
        self._path, self._gguf, self._folder, self._whole = path, gguf, folder, whole
        self._times, self._progress = times, progress
        self._stores = folder / "stores"
        self._number = 0  # of the round
        self._truth: dict[tuple[int, int], str] = {}  # the newest logits of what was read anew

    def save(self, contexts: Sequence[int]) -> None:
        """Stores a context of each size."""
        self._progress(f"reading and storing {max(contexts):,} tokens")
        stores = str(self._stores)
        self._ours("save", makes=stores, store=stores, contexts=list(contexts))

    def measure(self, tokens: int, number: int, where: str) -> None:
        """All states at one size, in the first round for each number of new tokens."""
        self._number = number
        for new_tokens in NEW_TOKENS if number == 1 and self._whole else NEW_TOKENS[:1]:

            def say(what: str, new_tokens: int = new_tokens) -> None:
                self._progress(f"{what}, {tokens:,} + {new_tokens} tokens, {where}")

            if number == 1 or self._whole:
                say("cold")
                self._cold(tokens, new_tokens)
                if new_tokens == 1:
                    self._peers(tokens, new_tokens, say)
            say("warm")
            self._warm(tokens, new_tokens, False)
            if self._whole and hasattr(os, "posix_fadvise"):
                say("page cache dropped")
                self._warm(tokens, new_tokens, True)

    def saving(self, tokens: int) -> list[Row]:
        """What storing a context costs agents that decode, round by round."""
        self._progress(f"agents decode while {tokens:,} tokens are stored")
        store = str(self._folder / "saving")
        about = {"source": self._store(tokens), "tokens": tokens, "num_rounds": SAVING_ROUNDS}
        found = self._ours("saving", makes=store, store=store, **about)
        return [{"what": "saving", "tokens": tokens, **row} for row in found]

    def _ours(self, job: str, **arguments: Any) -> Any:
        return side.run("ttft_ours", job, path=self._path, **arguments)

    def _cold(self, tokens: int, new_tokens: int) -> None:
        logits = self._truth[tokens, new_tokens] = self._logits("cold", tokens, new_tokens)
        store = logits.replace(".npy", ".store")
        arguments: Row = {"tokens": tokens, "new_tokens": new_tokens, "logits": logits}
        found = self._ours("cold", makes=store, store=store, **arguments)
        self._note("cold", tokens, new_tokens, found)

    def _warm(self, tokens: int, new_tokens: int, dropped: bool) -> None:
        logits = self._logits("dropped" if dropped else "warm", tokens, new_tokens)
        arguments: Row = {"tokens": tokens, "new_tokens": new_tokens, "logits": logits}
        found = self._ours("warm", store=self._store(tokens), dropped=dropped, **arguments)
        name = f"{tokens:,} + {new_tokens} tokens"
        truth = np.load(self._truth[tokens, new_tokens])
        files = found.pop("files")
        phases = found["phases_s"]
        phases["other"] = found["ttft_s"] - sum(phases[stage] for stage in STAGES)
        found["kl"] = check(truth, np.load(logits), name)
        found["read_s"] = side.run("ttft_ours", "read", files=files, dropped=dropped)
        found["limit_s"] = found["read_s"] + found["step_s"]
        hot = found.pop("hot_s")
        self._note("dropped" if dropped else "warm", tokens, new_tokens, found)
        if not dropped:
            self._note("hot", tokens, new_tokens, {"ttft_s": hot, "step_s": found["step_s"]})

    def _peers(self, tokens: int, new_tokens: int, say: Progress) -> None:
        arguments: dict[str, Any] = {"path": self._path, "tokens": tokens, "new_tokens": new_tokens}
        if tokens <= MLX_LM_MOST:
            say("mlx-lm")
            found = side.run("ttft_mlx_lm", "cold", **arguments)
            self._note("mlx_lm", tokens, new_tokens, found)
        if self._gguf:
            say("llama.cpp")
            found = side.run("ttft_llama_cpp", "cold", gguf=self._gguf, **arguments)
            self._note("llama_cpp", tokens, new_tokens, found)

    def _store(self, tokens: int) -> str:
        return str(self._stores / str(tokens))

    def _logits(self, state: str, tokens: int, new_tokens: int) -> str:
        return str(self._folder / f"{state}-{tokens}-{new_tokens}-{self._number}.npy")

    def _note(self, state: str, tokens: int, new_tokens: int, found: Row) -> None:
        got = found.pop("prompt_tokens", tokens + new_tokens)
        if got != tokens + new_tokens:
            raise EdgeCortexError(f"{state}: expected {tokens + new_tokens:,} tokens, got {got:,}")
        self._times[state, tokens, new_tokens].append(found)


def max_kl() -> float:
    """What rounding may do to one token's logits here, in nats."""
    return MAX_KL_16_BITS if compute_dtype() is None else MAX_KL_FP32


def check(cold: np.ndarray, warm: np.ndarray, name: str) -> float:
    """Compares the logits (tokens, vocab) of two greedy answers, up to where one goes another way.

    Returns: the largest KL divergence, in nats.

    Raises:
        EdgeCortexError: they are not two roundings of the same.
    """
    kl, most = 0.0, max_kl()
    for i, (truth, other) in enumerate(zip(_log_p(cold), _log_p(warm), strict=True)):
        here = float((np.exp(truth) * (truth - other)).sum())
        if not here <= most:  # not a number is none
            raise EdgeCortexError(
                f"{name}: the restored context says something else at token {i + 1}: expected "
                f"logits within {most:g} nats of those of the context read anew, got {here:.3g}"
            )
        kl = max(kl, here)
        best, chosen = int(truth.argmax()), int(other.argmax())
        if best == chosen:
            continue
        if truth[best] - truth[chosen] > NEAR_TIE:
            raise EdgeCortexError(
                f"{name}: the restored context goes another way: expected token {best} at place "
                f"{i + 1}, got {chosen}, {truth[best] - truth[chosen]:.3g} nats less likely"
            )
        break
    return kl


def _log_p(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))


def _rows(times: Times) -> list[Row]:
    """Medians over the rounds, by state and size; then where the time of restored ones goes."""
    found = sorted(times.items(), key=_order)
    restored = [(key, parts) for key, parts in found if "phases_s" in parts[0]]
    return [_ttft(*key, parts) for key, parts in found] + [
        _phases(*key, parts) for key, parts in restored
    ]


def _round(times: Times, number: int) -> Times:
    return {key: [parts[number]] for key, parts in times.items() if number < len(parts)}


def _ttft(state: str, tokens: int, new_tokens: int, parts: list[Row]) -> Row:
    seconds = [part["ttft_s"] for part in parts]
    row: Row = {"what": "ttft", "state": state, "tokens": tokens, "new_tokens": new_tokens}
    row |= {"ttft_s": median(seconds), "least_s": min(seconds), "most_s": max(seconds)}
    for key in ("step_s", "read_s", "limit_s"):
        if key in parts[0]:
            row[key] = median(part[key] for part in parts)
    if "limit_s" in row:
        row["over_limit"] = row["ttft_s"] / row["limit_s"]
        row["kl"] = max(part["kl"] for part in parts)
    return row


def _phases(state: str, tokens: int, new_tokens: int, parts: list[Row]) -> Row:
    row: Row = {"what": "phases", "state": state, "tokens": tokens, "new_tokens": new_tokens}
    names = parts[0]["phases_s"]
    return row | {f"{name}_s": median(part["phases_s"][name] for part in parts) for name in names}


def _order(item: tuple[tuple[str, int, int], list[Row]]) -> tuple[int, int, int]:
    (state, tokens, new_tokens), _ = item
    states = ["cold", "warm", "dropped", "hot", "mlx_lm", "llama_cpp"]
    return new_tokens, states.index(state), tokens


def _figures(rows: list[Row]) -> dict[str, float]:
    """Those that the rows allow, of one new token."""
    wanted = [row for row in rows if row["what"] == "ttft" and row["new_tokens"] == 1]
    by = {(row["state"], row["tokens"]): row for row in wanted}

    def most(state: str, value: Callable[[Row], float], least_tokens: int = 0) -> float | None:
        found = [value(r) for (s, n), r in by.items() if s == state and n >= least_tokens]
        return max(found, default=None)

    def ratio(state: str, tokens: int, other: str) -> float | None:
        a, b = by.get((state, tokens)), by.get((other, tokens))
        return a["ttft_s"] / b["ttft_s"] if a and b else None

    slower = [row["slowdown_pct"] for row in rows if row["what"] == "saving"]
    figures = {
        "ttft.warm_over_limit": most("warm", lambda row: row["over_limit"], LIMIT_FROM),
        "ttft.cold_over_warm_8k": ratio("cold", 8192, "warm"),
        "ttft.cold_4k_over_mlx_lm": ratio("cold", 4096, "mlx_lm"),
        "ttft.cold_4k_over_llama_cpp": ratio("cold", 4096, "llama_cpp"),
        "ttft.hot_over_step": most("hot", lambda row: row["ttft_s"] / row["step_s"]),
        "ttft.saving_slowdown_pct": median(slower) if slower else None,
    }
    return {name: value for name, value in figures.items() if value is not None}
