"""EdgeCortex, mlx-lm and llama.cpp at the same work, on the same files, prompts and machine.

Every job is a process of its own, and the sides take turns, round by round. What they say is
checked, so that a wrong answer cannot win: a side that fails a check is marked in all its rows,
and nothing is held against it.

A side's jobs are `save` (reads contexts and stores them), `cold` and `restored` (the first token
after a context and one more token), and `decode`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgecortex.bench import side, ttft
from edgecortex.bench.journal import work_folder
from edgecortex.bench.report import Report, Row, make_report, median
from edgecortex.bench.side import BLOCKS
from edgecortex.bench.text import english_once, passages, prompts
from edgecortex.bench.ttft_ours import NUM_GENERATED
from edgecortex.errors import EdgeCortexError
from edgecortex.models import resolve
from edgecortex.models.adapter import Tokenizer, compute_dtype

Progress = Callable[[str], None]
OURS, OURS_FP = "ours", "ours fp"
SIDES = {  # each one's module and variant
    OURS: ("compare_ours", "auto"),
    OURS_FP: ("compare_ours", "fp"),
    "mlx-lm": ("compare_mlx_lm", "plain"),
    "mlx-lm 4-bit": ("compare_mlx_lm", "4-bit"),
    "llama.cpp": ("compare_llama_cpp", "f16"),
    "llama.cpp q4_0": ("compare_llama_cpp", "q4_0"),
}
LLAMA = [name for name, (module, _) in SIDES.items() if module == "compare_llama_cpp"]
ALONE = ("mlx-lm 4-bit",)  # has no batch
TIMED = (OURS, "mlx-lm", "llama.cpp")  # whose times are figures
EXACT = ("mlx-lm", OURS_FP)  # they compute the same numbers, but for rounding
NEAR_TIE_16_BITS = 0.5  # nats; two logits of 16 bits may each be off by a quarter
# Mean nats by which the tokens of an answer are less likely than the likeliest. 4-bit KV comes to
# hundredths or a tenth, llama.cpp's 8-bit activations to less, a wrong context to several.
MAX_REGRET = 0.5
NOT_VALID = "not valid"
OK, NOT_CHECKED = "ok", "not checked"  # the latter of a side of which nothing but sizes is measured
EVEN = 0.02  # ratios that near to 1 are neither better nor worse
AGENTS = {
    "decode1": [64],
    "decode4": [64] * 4,
    "decode8": [64] * 8,
    "decode16": [64] * 16,
    "mixed4": [256, 64, 64, 64],
    "mixed16": [1024] + [64] * 15,
}


@dataclass(frozen=True)
class Work:
    """What is measured: lengths in tokens, the longest context last, `agents` the prompts' by
    scenario; a scenario is timed for `num_steps` steps, or `max_s` seconds. `window` is a text's
    that KL is measured on."""

    contexts: Sequence[int]
    rounds: int
    agents: dict[str, list[int]]
    num_steps: int
    max_s: float
    num_windows: int
    window: int = 512
    quick: bool = False  # time only sides whose times are figures


FULL = Work((512, 2048, 4096), 3, AGENTS, 48, 20.0, 4)
# Nobody decodes: one process a side would say little of another run's, and several take minutes.
QUICK = Work((256,), 3, {}, 0, 0.0, 1, window=256, quick=True)

LESS, MORE = "below 1", "above 1"
# Of each kind of rows: what is held against the others, in which direction, and against whom a
# figure tells; a ratio against everybody is a row.
METRICS = [
    ("ttft_cold", "cold", "ttft_s", LESS, ("mlx-lm", "llama.cpp")),
    ("ttft_restored", "restored", "ttft_s", LESS, ("mlx-lm", "llama.cpp")),
    ("", "decode", "tokens_per_s", MORE, ("mlx-lm", "llama.cpp")),
    ("first_tokens", "begun", "first_tokens_s", LESS, ()),
    ("kv_bytes", "kv", "kv_bytes", LESS, ("mlx-lm 4-bit", "llama.cpp q4_0")),
    ("kv_bytes_in_16_bits", "kv", "in_16_bits_bytes", LESS, ()),
    ("disk_bytes", "kv", "disk_bytes", LESS, tuple(SIDES)),
    ("kl", "kl", "kl", LESS, ("mlx-lm 4-bit", "llama.cpp q4_0")),
    ("peak_memory", "cold", "peak_mb", LESS, ("mlx-lm", "llama.cpp")),
]
DEFINITIONS = {
    "cold": "a new process, the model loaded and warm; a context and one token are read",
    "restored": "a new process, the model loaded and warm; the context's KV is on disk and in the "
    "page cache, and one token is read",
    "begun": "seconds until each agent has said its first token, all begun at once",
    "decode": "from then on tokens per second of all together, in blocks of steps",
    "kv": "a context's KV in memory, what it would take where MLX computes in 16-bit floats, and "
    "its files",
    "kl": "nats per token to the same side's full precision (llama.cpp: 16-bit KV)",
    "peak_mb": "the most memory of the process by then, weights and all",
    "mlx-lm 4-bit": "its quantized cache; the prompt is read with plain KV and quantized then, "
    "which is faster",
    "check": "answers against mlx-lm's own model in full precision, restored ones against those "
    "read anew",
}


def measure(
    model: str, progress: Progress, *, quick: bool = False, gguf: Path | None = None
) -> Report:
    """Compares all sides that are here.

    Args:
        gguf: the file that the model was imported from, for llama.cpp; `model` may be that too.

    Raises:
        EdgeCortexError: our side failed.
    """
    return compare(model, QUICK if quick else FULL, progress, gguf)


def compare(model: str, work: Work, progress: Progress, gguf: Path | None = None) -> Report:
    """As `measure`, on work of any size."""
    given = ttft.given_gguf(gguf, model)
    with work_folder() as folder:
        found = _Comparison(str(resolve(model)), given, work, Path(folder), progress)
        found.run()
    rows = ratios(found.rows)
    figures = {name: row["ratio"] for name, row in _told(rows)}
    spreads = {name: [row["least"], row["most"]] for name, row in _told(rows) if "least" in row}
    settings = {
        "model": model,
        **asdict(work),
        "dtype": str(compute_dtype() or "as stored"),
        "llama.cpp": ttft.llama_cpp_told(gguf, model),
        "near_tie_nats": near_tie(),
        "max_regret_nats": MAX_REGRET,
        "definitions": DEFINITIONS,
    }
    return make_report("compare", settings, figures, [*rows, *found.rows], spreads)


def near_tie() -> float:
    """By how many nats rounding may mistake the likeliest token here."""
    return NEAR_TIE_16_BITS if compute_dtype() is None else ttft.NEAR_TIE


class _Comparison:
    """Runs the jobs and collects rows. `_wrong` has what a side was first found to do wrong."""

    def __init__(
        self, path: str, gguf: str | None, work: Work, folder: Path, progress: Progress
    ) -> None:
        from mlx_lm.utils import load_tokenizer

        self._path, self._gguf, self._work = path, gguf, work
        self._folder, self._progress = folder, progress
        self._tokenizer = Tokenizer(load_tokenizer(Path(path)))
        self._texts = self._prompts()
        self._sides = [n for n in SIDES if n != OURS_FP and (gguf or n not in LLAMA)]
        self._wrong: dict[str, str] = {}
        self._said: dict[tuple[int, ...], dict[tuple[int, ...], set[str]]] = {}
        self.rows: list[Row] = []

    def run(self) -> None:
        """Everything, then the verdict on what was said."""
        self._save()
        for number in range(1, self._work.rounds + 1):
            for tokens in self._work.contexts:
                self._first_tokens(tokens, number)
            if self._work.agents:
                self._decode(number)
        if self._work.agents:
            self._full_precision()
        self._kl()
        self._judge()
        said = {row["side"] for row in self.rows if row["what"] == "answers"}
        for row in self.rows:
            fine = OK if row["side"] in said else NOT_CHECKED
            row["check"] = self._wrong.get(row["side"], fine)

    def _do(self, name: str, job: str, makes: str = "", **arguments: Any) -> Any:
        """A job of a side; None once a peer's has failed, which leaves it out from there on."""
        module, variant = SIDES[name]
        path = self._gguf if name in LLAMA else self._path
        try:
            return side.run(module, job, makes=makes, path=path, variant=variant, **arguments)
        except EdgeCortexError as error:
            if name == OURS:
                raise
            self._sides.remove(name)
            reason = str(error).strip().splitlines()[-1]
            self._wrong.setdefault(name, f"its job {job!r} failed: {reason}")
            self.rows.append({"what": "left out", "side": name})
            return None

    def _timed(self) -> list[str]:
        return [n for n in self._sides if not self._work.quick or n in TIMED]

    def _store(self, name: str) -> str:
        return str(self._folder / name)

    def _prompts(self) -> list[list[int]]:
        """For each agent of the largest scenario, ids of which its prompts are the beginnings; the
        contexts are the first one's."""
        scenarios = self._work.agents.values()
        longest = max([*self._work.contexts, *(n for lengths in scenarios for n in lengths)]) + 1
        return prompts(self._tokenizer, [longest] * max(map(len, scenarios), default=1))

    def _context(self, tokens: int) -> list[int]:
        """The ids of a context, and of the token after it."""
        return self._texts[0][: tokens + 1]

    def _save(self) -> None:
        contexts = [self._context(tokens)[:-1] for tokens in self._work.contexts]
        for name in [*self._sides]:
            self._progress(f"{name}: reading and storing {max(self._work.contexts):,} tokens")
            store = self._store(name)
            found = self._do(name, "save", store, store=store, prompts=contexts)
            self.rows += [{"what": "kv", "side": name, **row} for row in found or []]

    def _first_tokens(self, tokens: int, number: int) -> None:
        for state in ("cold", "restored"):
            for name in self._timed():
                self._progress(f"{name}: {state}, {tokens:,} tokens, round {number}")
                self._first_token(name, state, tokens, number)

    def _first_token(self, name: str, state: str, tokens: int, number: int) -> None:
        ids = self._context(tokens)
        stem = f"{name}-{tokens}-{number}"
        files = {s: self._folder / f"{stem}-{s}.npy" for s in ("cold", "restored")}
        common: Row = {"store": self._store(name), "num_tokens": NUM_GENERATED}
        found = self._do(name, state, ids=ids, logits=str(files[state]), **common)
        if found is None:
            return
        row = {"what": state, "side": name, "tokens": tokens, "round": number, **found}
        logits = np.load(files[state])
        if state == "cold":
            self._note(name, ids, logits.argmax(axis=-1).tolist())
        else:
            title = f"{tokens:,} tokens"
            try:
                row["kl"] = ttft.check(np.load(files["cold"]), logits, title)
            except EdgeCortexError as error:
                row["kl"] = math.nan
                self._wrong.setdefault(name, str(error))
        self.rows.append(row)

    def _decode(self, number: int) -> None:
        alone = [name for name, lengths in self._work.agents.items() if len(lengths) == 1]
        for name in self._timed():
            self._scenarios(name, alone if name in ALONE else [*self._work.agents], number)

    def _full_precision(self) -> None:
        """Our engine with full-precision KV, on the last scenario: its answers are exact."""
        self._scenarios(OURS_FP, [list(self._work.agents)[-1]], 1)

    def _scenarios(self, name: str, chosen: list[str], number: int) -> None:
        self._progress(f"{name}: decoding, round {number}")
        scenarios = {
            scenario: [
                ids[:length]
                for ids, length in zip(self._texts, self._work.agents[scenario], strict=False)
            ]
            for scenario in chosen
        }
        times: Row = {"num_steps": self._work.num_steps, "max_s": self._work.max_s}
        for row in self._do(name, "decode", scenarios=scenarios, **times) or []:
            said = row.pop("said")
            for prompt, answer in zip(scenarios[row["scenario"]], said, strict=True):
                self._note(name, prompt, answer)
            about = {"side": name, "scenario": row.pop("scenario"), "agents": len(said)}
            for block, rate in enumerate(row.pop("tokens_per_s"), BLOCKS * (number - 1) + 1):
                speed = {"round": block, "tokens_per_s": rate}
                self.rows.append({"what": "decode", **about, **speed})
            self.rows.append({"what": "begun", **about, "round": number, **row})

    def _kl(self) -> None:
        self._progress("KL of each KV format")
        work = self._work
        windows = passages(self._tokenizer, work.num_windows, work.window, english_once())
        found = side.run("compare_ours", "kl", path=self._path, windows=windows)
        if LLAMA[0] in self._sides:
            found |= side.run("compare_llama_cpp", "kl", path=self._gguf, windows=windows)
        about = {"tokens": work.window, "windows": work.num_windows}
        self.rows += [{"what": "kl", "side": name, **about, "kl": kl} for name, kl in found.items()]

    def _note(self, name: str, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """Keeps what a side said after a prompt."""
        answers = self._said.setdefault(tuple(prompt), {})
        answers.setdefault(tuple(answer), set()).add(name)

    def _judge(self) -> None:
        """Holds all answers against mlx-lm's model in full precision."""
        self._progress("checking what was said")
        cases = [[prompt, list(answers)] for prompt, answers in self._said.items()]
        found = side.run("compare_mlx_lm", "judge", path=self._path, cases=cases)
        regrets: dict[str, list[tuple[float, float]]] = {}
        for answers, values in zip(self._said.values(), found, strict=True):
            for names, (most, mean) in zip(answers.values(), values, strict=True):
                for name in sorted(names):
                    regrets.setdefault(name, []).append((most, mean))
        for name, of_it in regrets.items():
            most, mean = (max(values) for values in zip(*of_it, strict=True))
            self._hold(name, most, mean)
            worst = {"worst_token_nats": most, "worst_answer_nats": mean}
            self.rows.append({"what": "answers", "side": name, "answers": len(of_it), **worst})
        if OURS_FP in self._wrong:
            self._wrong.setdefault(OURS, f"in full precision {self._wrong[OURS_FP]}")

    def _hold(self, name: str, most: float, mean: float) -> None:
        value, limit = (most, near_tie()) if name in EXACT else (mean, MAX_REGRET)
        if not value <= limit:  # not a number is none
            of_what = "a token" if name in EXACT else "an answer, on average,"
            self._wrong.setdefault(
                name,
                f"{of_what} is {value:.3g} nats less likely than the model's own choice, "
                f"expected at most {limit:g}",
            )


def ratios(rows: Sequence[Row]) -> list[Row]:
    """Ours over each other's, in every metric and at every size; medians over the rounds, and
    the least and the most that any two rounds give, where there are several."""
    wrong = {row["side"] for row in rows if row["check"] not in (OK, NOT_CHECKED)}
    found = []
    for metric, what, key, better, _ in METRICS:
        values: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row["what"] == what:
                values.setdefault((_place(row), row["side"]), []).append(row[key])
        for (place, name), theirs in values.items():
            ours = values.get((place, OURS))
            if ours and name not in (OURS, OURS_FP):
                row = {"what": "ratio", "metric": metric or place, "at": place, "over": name}
                row |= {"ours": median(ours), "theirs": median(theirs)}
                row["ratio"] = row["ours"] / row["theirs"]
                if len(ours) > 1:
                    row["least"] = min(ours) / max(theirs)
                    row["most"] = max(ours) / min(theirs)
                row["better"] = better
                row["verdict"] = _verdict(row["ratio"], better, sorted(wrong & {OURS, name}))
                found.append(row)
    return found


def _place(row: Row) -> str:
    return row["scenario"] if "scenario" in row else f"{row['tokens']:,} tokens"


def _verdict(ratio: float, better: str, wrong: Sequence[str]) -> str:
    if wrong:
        return f"{NOT_VALID}: {', '.join(wrong)} failed a check"
    gain = 1 / ratio if better == LESS else ratio
    if abs(gain - 1) <= EVEN:
        return "even"
    return f"better {gain:.3g}x" if gain > 1 else f"worse {1 / gain:.3g}x"


def _told(rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """Ratios that are figures, by their names: valid ones, that of the longest context last."""
    told = {(metric or None, name) for metric, *_, names in METRICS for name in names}
    for row in rows:
        metric = None if row["metric"] == row["at"] else row["metric"]
        if (metric, row["over"]) in told and not row["verdict"].startswith(NOT_VALID):
            yield f"compare.{row['metric']}_over_{_slug(row['over'])}", row


def _slug(name: str) -> str:
    return name.replace("4-bit", "4bit").replace("-", "_").replace(".", "_").replace(" ", "_")
