"""Self-test of attention over rows and sealed segments, through the pool as an engine uses it."""

import math
from dataclasses import dataclass, field, replace
from functools import partial

import mlx.core as mx
import numpy as np

from edgecortex import plain
from edgecortex.kv.context import Context
from edgecortex.kv.format import FORMATS, KVFormat
from edgecortex.kv.plan import StepPlan
from edgecortex.kv.pool import BlockPool
from edgecortex.kv.segment import multiplies_quantized, row_dtype
from edgecortex.plain import Checks, Gap, worst

QUANTIZED, DENSE = 1 << 20, 1  # query rows from which on a run is read back first
PATHS = {"quantized_matmul": QUANTIZED, "dense": DENSE}

# Of one head's output, root mean square, in roundings of one number: queries and keys are rounded
# once or twice, scores are up to 30, and an output moves by as much as they do. Four times what
# was measured on a CPU. In float32 that is 2e-5, while a token too many moves outputs by a
# thousandth or more; in bfloat16 it is 0.2, where only a kernel wrong as a whole stands out.
IN_ROUNDINGS = 100


@dataclass(frozen=True)
class Case:
    """One layer's geometry, format and compute dtype."""

    format: KVFormat
    dtype: mx.Dtype = mx.float32
    dense_from: int = QUANTIZED
    heads: int = 2
    groups: int = 3
    k_dim: int = 64
    v_dim: int = 64
    window: int | None = None

    def pool(self) -> BlockPool:
        """A pool of one such layer, without an end."""
        row = row_dtype(self.format, self.dtype).size * self.format.row
        row_nbytes = self.heads * (self.k_dim + self.v_dim) * row
        return BlockPool(self.format, [self.window], [1.0], row_nbytes, 1 << 40, self.dense_from)

    def turned(self, x: np.ndarray, which: int) -> np.ndarray:
        """Keys (0) or values (1) as they are stored, or back again."""
        turns = self.format.rotate_values if which else self.format.rotate_keys
        return plain.rotate(x) if turns else x


@dataclass
class Truth:
    """One context's keys and values, each a token's (n_kv_heads, dim): as written, and once they
    are sealed as they are stored."""

    written: tuple[list[np.ndarray], list[np.ndarray]] = field(default_factory=lambda: ([], []))
    sealed: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def copy(self) -> "Truth":
        k, v = self.written
        return Truth((list(k), list(v)), dict(self.sealed))

    def seen_by(self, number: int, case: Case) -> list[np.ndarray]:
        """Keys and values that token `number` attends, by the definition of the format."""
        sinks, window = case.format.num_sinks, case.window
        stop = sinks + case.format.num_sealed(number)
        first = 0 if window is None else max(0, number - window + 1)
        return [
            np.stack(
                [
                    self.sealed[i][which] if sinks <= i < stop else self.written[which][i]
                    for i in range(first, number + 1)
                ]
            )
            for which in (0, 1)
        ]


class Play:
    """Random tokens of several contexts, fed in steps."""

    def __init__(self, case: Case) -> None:
        self.case, self.pool = case, case.pool()
        self.rng = np.random.default_rng(7)
        self.truths: dict[Context, Truth] = {}
        self.gaps: list[Gap] = []
        self.stored: list[Gap] = []

    def open(self) -> Context:
        context = self.pool.open()
        self.truths[context] = Truth()
        return context

    def fork(self, parent: Context) -> Context:
        child = self.pool.fork(parent)
        self.truths[child] = self.truths[parent].copy()
        return child

    def step(self, *feed: tuple[Context, int]) -> None:
        """Feeds each context that many tokens, and compares what they read."""
        plan = StepPlan.build([(context, [0] * n) for context, n in feed])
        starts = {share.context: share.context.num_own for share in plan.shares}
        q, k, v = self._fresh(sum(n for _, n in feed))
        cache = self.pool.caches[0]
        self.pool.begin(plan)
        written = cache.update_and_fetch(k, v)
        out = cache.attend(q, 1 / math.sqrt(self.case.k_dim))
        self.pool.commit(plan)
        mx.eval(out, self.pool.arrays())
        rows = [self._rows(0, k, written[0]), self._rows(1, v, written[1])]
        for share in plan.shares:
            context, there = share.context, slice(share.start, share.start + share.num_tokens)
            for mine, new in zip(self.truths[context].written, rows, strict=True):
                mine.extend(new[there, :, 0])
            self._look_at(context)
            self._compare(context, starts[context], plain.numbers(q)[there], out[there])

    def _fresh(self, num_tokens: int) -> list[mx.array]:
        """Queries, keys and values (T, …, 1, dim); keys have an outlier channel, as real ones."""
        case = self.case
        shapes = (
            (case.heads * case.groups, 1, case.k_dim),
            (case.heads, 1, case.k_dim),
            (case.heads, 1, case.v_dim),
        )
        q, k, v = (self.rng.standard_normal((num_tokens, *shape), np.float32) for shape in shapes)
        k[..., 0] *= 8
        return [mx.array(x).astype(case.dtype) for x in (q, k, v)]

    def _rows(self, which: int, given: mx.array, written: mx.array) -> np.ndarray:
        """Keys or values as the cache took them, which must be those given, turned, in the
        precision of a row."""
        precision = plain.rounding(row_dtype(self.case.format, self.case.dtype))
        want = self.case.turned(plain.numbers(given), which)
        # Of numbers up to 30, which the turn rounds, and the row again.
        self.stored.append(plain.gap(written, want, 120 * precision, "rows"))
        if self.case.format.bits is not None and self.case.dtype == mx.float32:
            kept = plain.to_bfloat16(plain.numbers(written))
            self.stored.append(plain.same(written, kept, "rows in 16 bits"))
        return plain.numbers(written)

    def _look_at(self, context: Context) -> None:
        """Takes note of what was sealed, as it is stored."""
        truth = self.truths[context]
        for segment in context.segments:
            layer = segment.layers[0]
            if segment.stop - 1 in truth.sealed:
                continue
            read = plain.read(layer, self.case.k_dim)
            for i in range(layer.num_tokens):
                number = segment.stop - layer.num_tokens + i
                truth.sealed[number] = read.k[:, i], read.v[:, i]
                for which, slack in enumerate((read.k_slack[:, i], read.v_slack[:, i])):
                    off = truth.sealed[number][which] - truth.written[which][number]
                    steps = np.abs(off) / np.where(slack > 0, slack, 1.0)
                    most = 1.0 if self.case.format.bits else 0.0
                    self.stored.append(Gap(float(steps.max()), most, "sealed tokens"))

    def _compare(self, context: Context, start: int, q: np.ndarray, out: mx.array) -> None:
        where = "decode" if len(q) == 1 else "prefill"
        tolerance = plain.tolerance(IN_ROUNDINGS, self.case.dtype)
        for i in range(len(q)):
            if i in (0, len(q) - 1) or i % 23 == 0:
                k, v = self.truths[context].seen_by(start + i, self.case)
                turned = self.case.turned(q[i, :, 0], 0)
                want = self.case.turned(plain.attention(turned, k, v), 1)
                off = plain.numbers(out[i, :, 0]) - want
                rms = np.sqrt((off**2).mean(axis=-1)).max()
                self.gaps.append(Gap(float(rms), tolerance, where))


def measure(case: Case) -> Gap:
    """Reads prompts, forks, and decodes until blocks are sealed: runs that contexts share, runs
    of equal length of several, spans that begin anywhere in a block."""
    play = Play(case)
    a, b = play.open(), play.open()
    play.step((a, 60), (b, 3))
    play.step((a, 64), (b, 64))
    c, d = play.fork(a), play.fork(a)
    play.step((a, 1), (b, 1), (c, 20), (d, 1))
    for _ in range(6):
        play.step((a, 1), (b, 1), (c, 1), (d, 1))
    play.step((a, 1), (b, 64), (c, 2), (d, 1))
    for _ in range(3):
        play.step((c, 1), (b, 1))
    play.pool.check()
    return worst(*play.gaps, *(found for found in play.stored if not found.passed))


def paths(format: KVFormat) -> dict[str, int]:
    """Those that a format may take on this device."""
    both = format.bits is not None and multiplies_quantized()
    return PATHS if both else {"dense": DENSE}


def checks() -> Checks:
    """Every format through both paths, in every dtype; then geometries and windows."""
    cases = {}
    for name, format in FORMATS.items():
        for dtype in (mx.float32, mx.float16, mx.bfloat16):
            kind = str(dtype).removeprefix("mlx.core.")
            for path, dense_from in paths(format).items():
                cases[f"{name}, {kind}, {path}"] = Case(format, dtype, dense_from)
    for name in ("kv4", "plain4", "fp"):
        base = Case(FORMATS[name], dense_from=next(iter(paths(FORMATS[name]).values())))
        cases |= {
            f"{name}, window of 70": replace(base, window=70),
            f"{name}, keys of 192, values of 128": replace(base, k_dim=192, v_dim=128, groups=1),
            f"{name}, heads of 80, 8 queries to one": replace(
                base, k_dim=80, v_dim=80, heads=1, groups=8
            ),
        }
    return {name: partial(measure, case) for name, case in cases.items()}
