"""The self-test passes here, and finds a fault in any kernel path by the check that is for it."""

import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import plain, sampling, selftest, selftest_kernels, selftest_models
from edgecortex.errors import ConfigError
from edgecortex.kv import affine, attention, batch, plan, segment
from edgecortex.kv.batch import BatchQuantizedKVCache
from edgecortex.kv.blocks import Loading
from edgecortex.models.adapter import LoadedModel
from edgecortex.plain import Gap

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def report() -> selftest.Report:
    return selftest.run()


def test_everything_passes_here(report: selftest.Report) -> None:
    assert [found for found in report.checks if not found.passed] == []
    assert report.num_failed == 0
    assert {found.group for found in report.checks} == set(selftest.GROUPS)
    names = [(found.group, found.name) for found in report.checks]
    assert names == [(group, name) for group, made in selftest.GROUPS.items() for name in made()]


def test_errors_are_measured(report: selftest.Report) -> None:
    """Whatever rounds has an error; what must be equal has a tolerance of none."""
    exact = [found for found in report.checks if found.tolerance == 0]
    assert {found.group for found in exact} == {"mlx", "storage", "store", "engine"}
    assert all(found.error == 0 for found in exact)
    rounded = [found for found in report.checks if found.tolerance]
    assert {found.name for found in rounded if not found.error} <= {"answers of a batch"}


# Faults.


def scaled(function: Callable[..., Any], by: float = 1.001) -> Callable[..., Any]:
    """A function whose result is a thousandth too large."""
    return lambda *args, **more: function(*args, **more) * by


def mx_with(**changed: Any) -> types.SimpleNamespace:
    """`mlx.core` as one module sees it, with other functions in it."""
    return types.SimpleNamespace(**vars(mx) | changed)


def slightly_wrong_input(patch: Patch) -> None:
    patch.setattr(selftest_kernels, "mx", mx_with(array=scaled(mx.array)))


def offset_by_one(patch: Patch) -> None:
    own = mx.fast.rope

    def rope(x: mx.array, dims: int, *, offset: Any, **more: Any) -> mx.array:
        return own(x, dims, offset=offset + isinstance(offset, mx.array), **more)

    patch.setattr(mx.fast, "rope", rope)


def runs_mixed_up(ndim: int, axis: int) -> Callable[[Patch], None]:
    """As if a kernel began at another place of arrays with that many axes."""

    def inject(patch: Patch) -> None:
        own = selftest_kernels._multiplied

        def multiplied(x: mx.array, packed: Any, bits: int, transposed: bool) -> mx.array:
            if packed[0].ndim == ndim:
                packed = tuple(mx.roll(part, 1, axis=axis) for part in packed)
            return own(x, packed, bits, transposed)

        patch.setattr(selftest_kernels, "_multiplied", multiplied)

    return inject


def padding_of_zeros(patch: Patch) -> None:
    own = mx.pad
    patch.setattr(selftest_kernels, "mx", mx_with(pad=lambda x, widths, **_: own(x, widths)))


def bfloat16_cut_off(patch: Patch) -> None:
    def cut(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)

    patch.setattr(plain, "to_bfloat16", cut)


def codes_rounded_down(patch: Patch) -> None:
    patch.setattr(affine, "mx", mx_with(round=mx.floor))


def cut_at_another_block(patch: Patch) -> None:
    own = segment._cut

    def cut(part: mx.array, axis: int, start: int, stop: int, num_tokens: int) -> mx.array:
        return own(part, axis, *((0, stop - start) if stop == 192 else (start, stop)), num_tokens)

    patch.setattr(segment, "_cut", cut)


def stacked_in_another_order(patch: Patch) -> None:
    own = segment._neighbours
    patch.setattr(segment, "_neighbours", lambda layers: own(list(layers)[::-1]))


def only_when(wanted: bool, name: str) -> Callable[[Patch], None]:
    """A product with a run that is wrong on one of the two paths."""

    def inject(patch: Patch) -> None:
        own = getattr(segment.LayerKV, name)

        def product(self: Any, x: mx.array, dense: bool) -> mx.array:
            dense_path = dense or self.format.bits is None
            return own(self, x, dense) * (1.001 if dense_path == wanted else 1)

        patch.setattr(segment.LayerKV, name, product)

    return inject


def one_token_too_many(patch: Patch) -> None:
    """Of a sliding window, seen by single rows."""
    own = plan._row_mask
    patch.setattr(
        plan, "_row_mask", lambda c, format, window: own(c, format, window and window + 1)
    )


def one_token_too_many_in_prefill(patch: Patch) -> None:
    own = plan._visible
    patch.setattr(plan, "_visible", lambda seen: own(seen | np.roll(seen, -1, axis=1)))


def sealed_from_other_slots(patch: Patch) -> None:
    own = BatchQuantizedKVCache.seal_rows
    patch.setattr(BatchQuantizedKVCache, "seal_rows", lambda self, slots: own(self, slots * 0))


def rows_copied_too_late(patch: Patch) -> None:
    """A fork gets the row of another."""
    own = BatchQuantizedKVCache.copy_row
    patch.setattr(BatchQuantizedKVCache, "copy_row", lambda self, source, to: own(self, 1, to))


def rows_of_32_bits(patch: Patch) -> None:
    patch.setattr(batch, "rounded", lambda x, format: x)


def scaled_in(module: Any, name: str) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(module, name, scaled(getattr(module, name)))


def positions_run_ahead(patch: Patch) -> None:
    own = BatchQuantizedKVCache.offset.fget
    ahead = property(lambda self: own(self) + mx.arange(self._plan.positions.size))
    patch.setattr(BatchQuantizedKVCache, "offset", ahead)


def logits_of_other_rows(patch: Patch) -> None:
    own = plan.StepPlan.last_rows
    patch.setattr(plan.StepPlan, "last_rows", lambda self: mx.maximum(own(self) - 1, 0))


def one_bit_flipped(of_windows: bool) -> Callable[[Patch], None]:
    """In the values of every block."""

    def inject(patch: Patch) -> None:
        own = Loading._fill

        def fill(self: Any, index: int, arrays: Any, slides: bool) -> None:
            flipped = {name: np.array(x) for name, x in arrays.items()}
            for name, x in flipped.items():
                if name.endswith(".v0") and slides == of_windows:
                    x.view(np.uint8).flat[0] ^= 1
            own(self, index, flipped, slides)

        patch.setattr(Loading, "_fill", fill)

    return inject


def sinks_forgotten(patch: Patch) -> None:
    own = Loading._rows_of
    patch.setattr(Loading, "_rows_of", lambda *args: {k: 0 * x for k, x in own(*args).items()})


def newest_tokens_read_first(patch: Patch) -> None:
    own = BatchQuantizedKVCache.read

    def read(self: Any, *args: Any) -> Any:
        k, v, numbers = own(self, *args)
        return mx.roll(k, 1, axis=1), v, numbers

    patch.setattr(BatchQuantizedKVCache, "read", read)


def bias_left_out(patch: Patch) -> None:
    patch.setattr(BatchQuantizedKVCache, "_bias", lambda self, context: None)


def turned_too_far(patch: Patch) -> None:
    own = LoadedModel.turned
    patch.setattr(LoadedModel, "turned", lambda self, layer, k, by: own(self, layer, k, by + 1))


def nothing_evaluated(patch: Patch) -> None:
    patch.setattr(selftest_models, "mx", mx_with(eval=lambda *_: None))


def the_worst_token(patch: Patch) -> None:
    patch.setattr(sampling, "mx", mx_with(argmax=mx.argmin))


KV4, WINDOW = "kv4, float32, quantized_matmul", "kv4, window of 70"
FAULTS: dict[str, list[tuple[Callable[[Patch], None], set[str], set[str]]]] = {
    "mlx": [
        (slightly_wrong_input, {"maxima and sums of rows"}, set()),
        (
            scaled_in(mx, "quantized_matmul"),
            {"quantized_matmul, 8 bits, float32"},
            {"powers of two"},
        ),
        (
            runs_mixed_up(2, 0),
            {"quantized_matmul of views"},
            {"quantized_matmul, 4 bits, float32"},
        ),
        (
            runs_mixed_up(4, 1),
            {"quantized_matmul of keys shared by rows"},
            {"quantized_matmul of views"},
        ),
        (scaled_in(mx, "hadamard_transform"), {"hadamard_transform", "rotation of heads"}, set()),
        (scaled_in(selftest_kernels, "rotate"), {"rotation of heads"}, {"hadamard_transform"}),
        (offset_by_one, {"rope with an array of offsets"}, {"rounding to bfloat16"}),
        (padding_of_zeros, {"writing to and taking from slabs"}, {"rounding to bfloat16"}),
        (scaled_in(selftest_kernels.cpu, "exp2"), {"powers of two"}, {"matmul in float32"}),
        (bfloat16_cut_off, {"rounding to bfloat16"}, {"matmul in bfloat16"}),
    ],
    "storage": [
        (codes_rounded_down, {"accuracy of 4 bits", "accuracy of 8 bits"}, {"runs sealed as fp"}),
        (scaled_in(mx, "dequantize"), {"pack and unpack, 8 bits by 64"}, {"accuracy of 8 bits"}),
        (cut_at_another_block, {"runs sealed as kv4", "runs sealed as fp"}, {"accuracy of 4 bits"}),
    ],
    "attention": [
        (only_when(False, "_products"), {KV4, WINDOW}, {"kv4, float32, dense"}),
        (only_when(True, "_products"), {"kv4, float32, dense"}, {KV4}),
        (only_when(False, "weighted"), {KV4, WINDOW}, {"kv4, float32, dense"}),
        (only_when(True, "weighted"), {"kv4, float32, dense"}, {KV4}),
        (scaled_in(batch, "rotate"), {KV4, WINDOW}, {"fp, float32, dense"}),
        (rows_of_32_bits, {KV4, WINDOW}, {"fp, float32, dense"}),
        (scaled_in(attention, "prefill"), {KV4, WINDOW, "fp, float32, dense"}, set()),
        (scaled_in(attention, "_merge"), {KV4, "fp, float32, dense"}, set()),
        (scaled_in(attention, "_decode_together"), {KV4}, set()),
        (stacked_in_another_order, {KV4, "fp, float32, dense"}, set()),
        (one_token_too_many, {WINDOW, "fp, window of 70"}, {KV4}),
        (one_token_too_many_in_prefill, {WINDOW, "fp, window of 70"}, {KV4}),
        (sealed_from_other_slots, {KV4, WINDOW}, set()),
        (rows_copied_too_late, {KV4, WINDOW}, set()),
    ],
    "models": [
        (positions_run_ahead, {"llama, float32", "gemma3_text, float32"}, set()),
        (logits_of_other_rows, {"llama, float32", "deepseek_v2, float32"}, set()),
        (logits_of_other_rows, {"llama, bfloat16", "llama, 4-bit weights"}, set()),
    ],
    "store": [
        (one_bit_flipped(False), {"llama, kv4", "deepseek_v2, fp"}, set()),
        (one_bit_flipped(True), {"gemma3_text, kv4", "gemma3_text, fp"}, {"llama, kv4"}),
        (sinks_forgotten, {"llama, kv8, bfloat16", "gemma3_text, kv4"}, set()),
    ],
    "segments": [
        (
            newest_tokens_read_first,
            {"llama: read and laid again", "gemma3_text: a synapse of all tokens"},
            {"llama: one that weighs as two"},
        ),
        (bias_left_out, {"llama: one that weighs as two"}, {"llama: read and laid again"}),
        (turned_too_far, {"llama: moved to other positions"}, {"llama: read and laid again"}),
    ],
    "engine": [
        (nothing_evaluated, {"arrays of both threads"}, set()),
        (the_worst_token, {"answers of a batch"}, {"arrays of both threads"}),
    ],
}
assert FAULTS.keys() == selftest.GROUPS.keys()
CASES = [(group, *fault) for group, faults in FAULTS.items() for fault in faults]


@pytest.mark.parametrize(("group", "inject", "fails", "passes"), CASES)
def test_a_fault_is_found(
    monkeypatch: Patch,
    group: str,
    inject: Callable[[Patch], None],
    fails: set[str],
    passes: set[str],
) -> None:
    checks = selftest.GROUPS[group]()
    segment._hadamard.cache_clear()
    with monkeypatch.context() as patch:
        inject(patch)
        found = [selftest.outcome(group, name, checks[name]) for name in sorted(fails | passes)]
    segment._hadamard.cache_clear()
    assert {each.name for each in found if not each.passed} == fails
    assert all(each.message for each in found if each.name in fails)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_products_are_held_against_their_precision(dtype: str) -> None:
    kind = selftest_kernels.DTYPES[dtype]
    x, w = mx.ones((2, 3, 64)).astype(kind), np.ones((2, 64, 5))
    right = mx.full((2, 3, 5), 64.0)
    off = 1 + 16 * plain.rounding(kind)
    assert selftest_kernels._product(right, x, w, kind).passed
    assert not selftest_kernels._product(right * off, x, w, kind).passed
    with pytest.raises(ValueError, match=r"expected shape \(2, 3, 5\), got \(3, 5\)"):
        selftest_kernels._product(right[0], x, w, kind)


def test_a_coarse_float32_is_found(monkeypatch: Patch) -> None:
    """Of ten bits, as TF32 has, tolerances make allowance; of eight they do not."""
    check = selftest_kernels.mlx_checks()["float32 products keep ten bits or more"]
    for bits, passed in ((2**-11, True), (2**-9, False)):
        monkeypatch.setattr(plain, "rounding", lambda dtype, bits=bits: bits)
        assert selftest.outcome("mlx", "precision", check).passed == passed


# The run.


def raising() -> Gap:
    raise RuntimeError("[Metal]\n no such kernel")


SOME = {
    "fine": lambda: Gap(1e-7, 1e-6, "here"),
    "broken": raising,
    "off": lambda: Gap(0.5, 0.25, "decode"),
    "undefined": lambda: Gap(float("nan"), 1.0, "prefill"),
    "last": lambda: Gap(0.0, 0.0),
}


@pytest.fixture
def some_checks(monkeypatch: Patch) -> None:
    monkeypatch.setattr(selftest, "GROUPS", {"some": lambda: SOME})


@pytest.mark.usefixtures("some_checks")
def test_a_check_that_fails_is_reported_and_the_others_go_on() -> None:
    steps: list[tuple[str, int, int]] = []
    report = selftest.run("cpu", lambda *step: steps.append(step))
    assert steps == [("checking", i, 5) for i in range(6)]
    assert [found.name for found in report.checks] == list(SOME)
    assert [found.passed for found in report.checks] == [True, False, False, False, True]
    assert report.num_failed == 3
    assert [found.message for found in report.checks] == [
        "",
        "RuntimeError: [Metal] no such kernel",
        "decode: expected an error up to 0.25, got 0.5",
        "prefill: expected an error up to 1, got nan",
        "",
    ]
    assert [found.error for found in report.checks] == [1e-7, None, 0.5, None, 0.0]


@pytest.mark.usefixtures("some_checks")
@pytest.mark.skipif(mx.is_available(mx.gpu), reason="there is a GPU")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no device 'gpu' here: expected cpu;"):
        selftest.run("gpu")


@pytest.mark.usefixtures("some_checks")
def test_the_device_is_given_back(monkeypatch: Patch) -> None:
    before = mx.default_device()
    monkeypatch.setattr(selftest.doctor, "versions", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        selftest.run("cpu")
    assert mx.default_device() == before


def test_nothing_is_left_behind(home: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for group, name in (("store", "llama, kv4"), ("engine", "answers of a batch")):
        assert selftest.outcome(group, name, selftest.GROUPS[group]()[name]).passed
    assert list(tmp_path.iterdir()) == []
    assert not home.exists()
