"""Packing against plain arithmetic, and against `mx.quantize`."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.kv.affine import pack, unpack


def numbers(seed: int, offset: float, spread: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((2, 3, 128)) * spread + rng.standard_normal((2, 3, 1)) * offset
    return rows.astype(np.float32)


def codes_in(words: np.ndarray, bits: int) -> np.ndarray:
    """Code i of a word in its bits `bits * i` on."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return (words[..., None] >> shifts & (2**bits - 1)).reshape(*words.shape[:-1], -1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    offset=st.sampled_from([0.0, 1.0, 50.0]),
    spread=st.sampled_from([0.0, 1e-6, 0.1, 3.0]),
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([32, 64, 128]),
)
def test_what_is_read_back(
    seed: int, offset: float, spread: float, bits: int, group_size: int
) -> None:
    x = numbers(seed, offset, spread)
    packed = pack(mx.array(x), group_size, bits)
    words, scales, biases = (np.array(part) for part in packed)
    assert words.dtype == np.uint32
    assert scales.dtype == biases.dtype == np.float16
    scale, bias = (np.repeat(part.astype(np.float32), group_size, -1) for part in (scales, biases))
    plain = codes_in(words, bits) * scale + bias
    back = np.array(unpack(packed, group_size, bits, mx.float32))
    np.testing.assert_allclose(back, plain, rtol=1e-6, atol=1e-6)
    # A fitted range leaves out at most one step at either end, and fp16 rounds the bias.
    assert np.all(np.abs(back - x) <= 1.5 * scale + np.abs(bias) * 2**-11)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_more_accurate_than_mx_quantize(bits: int, offset: float) -> None:
    x = mx.array(numbers(1, offset, 1.0))
    stock = mx.dequantize(*mx.quantize(x, group_size=64, bits=bits), group_size=64, bits=bits)
    ours = unpack(pack(x, 64, bits), 64, bits, mx.float32)
    error, stock_error = (((y - x) ** 2).mean().item() for y in (ours, stock))
    assert error < stock_error
