"""Self-test of what EdgeCortex asks of MLX, and of how it packs KV."""

import itertools
from functools import partial

import mlx.core as mx
import numpy as np

from edgecortex import cpu, plain
from edgecortex.kv.affine import pack, unpack
from edgecortex.kv.format import FORMATS
from edgecortex.kv.plan import HIDDEN
from edgecortex.kv.segment import LayerKV, Stack, multiplies_quantized, rotate
from edgecortex.plain import Checks, Gap, worst

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

# Of a dot product, in roundings of one number and relative to the sum of its terms' sizes: the
# operands and the result are rounded once each, the sum at every step, which mostly cancels.
# Four times what was measured on a CPU; one wrong number in a hundred is a hundredth.
OF_A_PRODUCT = 12
# Of a rotated number, relative to the largest: angles go up to 4,096, of which some GPUs compute
# fast sines with about eight bits. One position too many moves numbers by tenths.
OF_AN_ANGLE = 2**-8
# Of a weight between 0 and 1: no token's share of attention is known better than that.
OF_A_WEIGHT = 1e-5
TF32 = 2**-10


def mlx_checks() -> Checks:
    """What MLX itself must do right."""
    products = {f"matmul in {name}": partial(_matmul, dtype) for name, dtype in DTYPES.items()}
    of_runs = {
        **_quantized_products("", False),
        "quantized_matmul of views": _views,
        "quantized_matmul of keys shared by rows": _broadcast,
    }
    return {
        "float32 products keep ten bits or more": _precision,
        **products,
        **_quantized_products(", transposed", True),
        **(of_runs if multiplies_quantized() else {}),
        "hadamard_transform": _hadamard,
        "rotation of heads": _rotation,
        "rope with an array of offsets": _rope,
        "writing to and taking from slabs": _slabs,
        "powers of two": _exp2,
        "rounding to bfloat16": _bfloat16,
        "maxima and sums of rows": _reductions,
    }


def _quantized_products(name: str, transposed: bool) -> Checks:
    """Weights are multiplied transposed, sealed runs are not."""
    return {
        f"quantized_matmul, {bits} bits, {kind}{name}": partial(_quantized, bits, dtype, transposed)
        for bits, (kind, dtype) in itertools.product((4, 8), DTYPES.items())
    }


def storage_checks() -> Checks:
    """Packing and sealing."""
    packs = {
        f"pack and unpack, {bits} bits by {group}": partial(_pack, bits, group)
        for bits, group in itertools.product((4, 8), (32, 64, 128))
    }
    accurate = {f"accuracy of {bits} bits": partial(_accuracy, bits) for bits in (4, 8)}
    seals = {f"runs sealed as {name}": partial(_runs, name) for name in FORMATS}
    return packs | accurate | seals


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _product(got: mx.array, x: mx.array, w: np.ndarray, dtype: mx.Dtype, where: str = "") -> Gap:
    """`got` against x @ w, relative to the sizes of what is summed."""
    a = plain.numbers(x).astype(np.float64)
    sizes = np.abs(a) @ np.abs(w)
    if got.shape != sizes.shape:
        raise ValueError(f"{where}: expected shape {sizes.shape}, got {got.shape}")
    error = np.abs(plain.numbers(got) - a @ w) / sizes
    return Gap(float(error.max()), OF_A_PRODUCT * plain.rounding(dtype), where)


# MLX.


def _precision() -> Gap:
    return Gap(plain.rounding(mx.float32), TF32)


def _matmul(dtype: mx.Dtype) -> Gap:
    gaps = []
    for m, k, n in ((1, 64, 300), (6, 80, 64), (130, 192, 70)):
        x, w = (mx.array(_normal(2, *shape)).astype(dtype) for shape in ((m, k), (k, n)))
        gaps.append(_product(x @ w, x, plain.numbers(w), dtype, f"{m} rows"))
    return worst(*gaps)


def _weights(bits: int, rows: int, length: int) -> tuple[tuple[mx.array, ...], np.ndarray]:
    packed = pack(mx.array(_normal(2, rows, length)), 64, bits)
    return packed, plain.unpack(packed, 64, bits)[0]


def _multiplied(x: mx.array, packed: tuple[mx.array, ...], bits: int, transposed: bool) -> mx.array:
    words, scales, biases = packed
    return mx.quantized_matmul(
        x, words, scales, biases, transpose=transposed, group_size=64, bits=bits
    )


def _quantized(bits: int, dtype: mx.Dtype, transposed: bool) -> Gap:
    """One row, a few, and many, which take different kernels."""
    packed, w = _weights(bits, 192, 320)
    w, gaps = w.swapaxes(-1, -2) if transposed else w, []
    for m in (1, 6, 40):
        x = mx.array(_normal(2, m, w.shape[1])).astype(dtype)
        gaps.append(_product(_multiplied(x, packed, bits, transposed), x, w, dtype, f"{m} rows"))
    return worst(*gaps)


def _views() -> Gap:
    """The first tokens of a longer run, one run of a stack, and a transposed query."""
    packed, w = _weights(4, 256, 128)
    gaps = []
    for m in (1, 6, 40):
        x = mx.array(_normal(2, m, 192))
        prefix = tuple(part[:, :192] for part in packed)
        got = _multiplied(x, prefix, 4, False)
        gaps.append(_product(got, x, w[:, :192], mx.float32, "first rows"))
        x = mx.array(_normal(2, m, 256))
        prefix = packed[0][..., :8], packed[1][..., :1], packed[2][..., :1]
        got = _multiplied(x, prefix, 4, False)
        gaps.append(_product(got, x, w[..., :64], mx.float32, "first columns"))
        one = tuple(part[1] for part in packed)
        x = mx.array(_normal(m, 256))
        gaps.append(_product(_multiplied(x, one, 4, False), x, w[1], mx.float32, "one of a stack"))
        x = mx.array(_normal(256, m)).T
        gaps.append(_product(_multiplied(x, one, 4, False), x, w[1], mx.float32, "transposed"))
    return worst(*gaps)


def _broadcast() -> Gap:
    """Keys and values (heads, …) of rows (m, heads, …), and of a leading axis of stride 0."""
    packed, w = _weights(4, 192, 128)
    x = mx.array(_normal(3, 2, 5, 192))
    stretched = tuple(mx.broadcast_to(part, (3, *part.shape)) for part in packed)
    return worst(
        _product(_multiplied(x, packed, 4, False), x, w, mx.float32, "without an axis"),
        _product(_multiplied(x, stretched, 4, False), x, w, mx.float32, "of stride 0"),
    )


def _hadamard() -> Gap:
    gaps = []
    for size in (32, 64, 128, 256):
        x = _normal(3, 5, size)
        got = mx.hadamard_transform(mx.array(x), scale=size**-0.5)
        gaps.append(plain.gap(got, plain.rotate(x), 2**-18, str(size)))  # 8 sums of numbers to 5
    return worst(*gaps)


def _rotation() -> Gap:
    gaps = []
    for size in (32, 64, 80, 112, 128, 192, 256):
        x = _normal(3, 5, size)
        want = plain.rotate(x)
        most = 16 * plain.rounding(mx.float32) * float(np.abs(want).max())
        gaps.append(plain.gap(rotate(mx.array(x)), want, most, str(size)))
        gaps.append(plain.gap(rotate(rotate(mx.array(x))), x, 2 * most, f"{size}, twice"))
    return worst(*gaps)


POSITIONS = np.array([0, 1, 2, 63, 64, 500, 1023, 4095])


def _rope() -> Gap:
    """Rows with positions of their own: by the formula, and as each row alone."""
    gaps = []
    for dim, heads in itertools.product((64, 80, 128), (1, 3)):
        x = mx.array(_normal(len(POSITIONS), heads, 1, dim))
        got = _turned(x, mx.array(POSITIONS, mx.int32))
        alone = [_turned(x[i : i + 1], int(at)) for i, at in enumerate(POSITIONS)]
        by_formula = plain.rope(plain.numbers(x), POSITIONS)
        most = OF_AN_ANGLE * float(np.abs(by_formula).max())
        gaps.append(plain.gap(got, by_formula, most, f"heads of {dim}"))
        gaps.append(plain.gap(got, plain.numbers(mx.concatenate(alone)), most, "rows alone"))
    return worst(*gaps)


def _turned(x: mx.array, offset: mx.array | int) -> mx.array:
    dim = x.shape[-1]
    return mx.fast.rope(x, dim, traditional=False, base=10000.0, scale=1.0, offset=offset)


def _slabs() -> Gap:
    """Every way in which rows are written, copied, taken and moved."""
    gaps = []
    for dtype in DTYPES.values():
        slab = mx.array(_normal(5, 2, 68, 16)).astype(dtype)
        new = mx.array(_normal(3, 2, 16)).astype(dtype)
        want, more = plain.numbers(slab), plain.numbers(new)
        slots, columns = [3, 0, 4], [67, 0, 5]
        slab[mx.array(slots), :, mx.array(columns)] = new
        want[slots, :, columns] = more
        slab[1, :, :3] = new.swapaxes(0, 1)
        want[1, :, :3] = more.swapaxes(0, 1)
        slab[2] = slab[3]
        want[2] = want[3]
        gaps.append(plain.same(slab, want, "written"))
        gaps.append(plain.same(slab[mx.array([4, 1, 1])], want[[4, 1, 1]], "taken"))
        padded = mx.pad(slab, [(0, 1), (0, 0), (0, 0), (0, 0)], constant_values=HIDDEN)
        index = [[0, 5], [5, 2]]
        lost = np.full((1, *want.shape[1:]), plain.numbers(mx.array(HIDDEN).astype(dtype)))
        taken = np.concatenate([want, lost.astype(want.dtype)])[index]
        gaps.append(plain.same(padded[mx.array(index)], taken, "taken by two"))
    return worst(*gaps)


def _exp2() -> Gap:
    gaps = []
    for size in (7, 1000, cpu.WORTH_WAITING + 1):
        x = np.linspace(-140, 0, size, dtype=np.float32)
        got = cpu.exp2(mx.array(x))
        gaps.append(plain.gap(got, np.exp2(x.astype(np.float64)), OF_A_WEIGHT, f"{size} numbers"))
        hidden = mx.full((size,), HIDDEN)
        gaps.append(plain.same(cpu.exp2(hidden), np.zeros(size, np.float32), "hidden tokens"))
    return worst(*gaps)


def _bfloat16() -> Gap:
    x = np.concatenate([_normal(999), 40 * _normal(1000), [1 + 2**-8, 1 + 3 * 2**-8, 0, -1]])
    x = x.astype(np.float32)
    want = plain.to_bfloat16(x)
    bits = (want.view(np.uint32) >> 16).astype(np.uint16)
    kept = mx.array(x).astype(mx.bfloat16)
    return worst(
        plain.same(kept, want, "numbers"),
        plain.same(kept.view(mx.uint16), bits, "bits"),
        plain.same(mx.array(bits).view(mx.bfloat16), want, "numbers of bits"),
    )


def _reductions() -> Gap:
    gaps = []
    for length in (1, 31, 64, 1000, 5000):
        x = _normal(2, 3, length)
        got, size = mx.array(x), float(np.abs(x).sum(axis=-1).max())
        total = x.astype(np.float64).sum(axis=-1)
        gaps.append(plain.gap(got.sum(axis=-1), total, 2**-20 * size, f"sums of {length}"))
        gaps.append(plain.same(got.max(axis=-1), x.max(axis=-1), f"maxima of {length}"))
        gaps.append(plain.same(got.min(axis=-1), x.min(axis=-1), f"minima of {length}"))
    return worst(*gaps)


# Storage.


def _groups(spread: float, offset: float) -> np.ndarray:
    rows = _normal(2, 3, 256) * spread + _normal(2, 3, 1) * offset
    return rows.astype(np.float32)


def _pack(bits: int, group: int) -> Gap:
    """Words, scales and biases against what they are to stand for, and as they are read back."""
    gaps = []
    for spread, offset in itertools.product((0.0, 1e-6, 0.1, 3.0), (0.0, 1.0, 50.0)):
        x = _groups(spread, offset)
        packed = pack(mx.array(x), group, bits)
        want, slack = plain.unpack(packed, group, bits)
        off = np.abs(want - x) / slack
        gaps.append(Gap(float(off.max()), 1.0, "packed"))
        size = max(float(np.abs(want).max()), 2**-14)  # the smallest that fp16 holds in full
        for dtype in DTYPES.values():
            back = unpack(packed, group, bits, dtype)
            # Scale, bias, their product and its sum are rounded, and up to twice as large.
            most = 8 * plain.rounding(dtype) * size
            gaps.append(plain.gap(back, want, most, "read back"))
    return worst(*gaps)


def _accuracy(bits: int) -> Gap:
    """The mean squared error, relative to that of the nearest of equal steps over each group's
    range: the fitted ones are better."""
    gaps = []
    for offset in (0.0, 5.0):
        x = _groups(1.0, offset).astype(np.float64)
        groups = x.reshape(-1, 64)
        low, high = (f(axis=1, keepdims=True) for f in (groups.min, groups.max))
        step = (high - low) / (2**bits - 1)
        nearest = np.rint((groups - low) / step) * step + low
        ours = plain.unpack(pack(mx.array(x.astype(np.float32)), 64, bits), 64, bits)[0]
        error = ((ours - x) ** 2).mean() / ((nearest - groups) ** 2).mean()
        # Eight bits are fine enough for the bias, rounded to fp16, to be felt beside them.
        gaps.append(Gap(float(error), 1.0 if bits == 4 else 1.02, f"offset {offset:g}"))
    return worst(*gaps)


def _runs(name: str) -> Gap:
    """Runs of several shapes: what they read as, cut, joined and stacked."""
    format, gaps = FORMATS[name], []
    for k_dim, v_dim in ((64, 64), (80, 80), (192, 128)):
        k, v = _normal(2, 192, k_dim), _normal(2, 192, v_dim)
        run = LayerKV.seal(mx.array(k), mx.array(v), format)
        read = plain.read(run, k_dim)
        for mine, slack, x in ((read.k, read.k_slack, k), (read.v, read.v_slack, v)):
            off = np.abs(mine - x) / np.where(slack > 0, slack, 1.0)
            gaps.append(Gap(float(off.max()), 1.0 if format.bits else 0.0, "sealed"))
        most = 4 * plain.rounding(mx.float32) * 5
        gaps.append(plain.gap(run.keys(mx.float32, k_dim), read.k, most, "keys"))
        gaps.append(plain.gap(run.values(mx.float32), read.v, most, "values"))
        first, rest = run.cut(0, 64), run.cut(64, 192)
        joined, stack = first.joined(rest), Stack.of([rest, rest.copied()])
        for part, again in zip((*run.k, *run.v), (*joined.k, *joined.v), strict=True):
            gaps.append(plain.same(again, plain.numbers(part), "cut and joined"))
        for part, both in zip((*rest.k, *rest.v), (*stack.k, *stack.v), strict=True):
            gaps.append(plain.same(both, np.stack([plain.numbers(part)] * 2), "stacked"))
    return worst(*gaps)
