"""The plain arithmetic that devices are held against, by hand."""

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import plain
from edgecortex.plain import Gap


def test_the_worst_gap_is_the_one_nearest_to_its_tolerance() -> None:
    near, far, over = Gap(0.9, 1.0), Gap(2.0, 10.0), Gap(0.2, 0.1)
    assert plain.worst(far, near) == near
    assert plain.worst(far, near, over) == over
    nothing = Gap(float("nan"), 1.0)
    assert plain.worst(near, nothing, far) is nothing


def test_shapes_must_agree() -> None:
    for compare in (lambda a, b: plain.gap(a, b, 1.0, "x"), lambda a, b: plain.same(a, b, "x")):
        with pytest.raises(ValueError, match=r"x: expected shape \(2,\), got \(1, 2\)"):
            compare(mx.zeros((1, 2)), np.zeros(2))


def test_attention_by_hand() -> None:
    """Two heads that share a key: a query of nothing takes the mean, a large one its own token."""
    q = np.array([[0.0, 0.0], [100.0, 0.0]])
    k = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    v = np.array([[[2.0]], [[4.0]]])
    np.testing.assert_allclose(plain.attention(q, k, v), [[3.0], [2.0]], atol=1e-12)


def test_rope_turns_pairs_by_their_angle() -> None:
    x = np.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    turned = plain.rope(x, np.array([1]))[0, 0, 0]
    np.testing.assert_allclose(turned, [np.cos(1), 0, np.sin(1), 0], atol=1e-12)


def test_hadamard_is_its_own_inverse() -> None:
    np.testing.assert_allclose(plain.hadamard(8) @ plain.hadamard(8), np.eye(8), atol=1e-12)
    assert np.sign(plain.hadamard(4)[1]).tolist() == [1, -1, 1, -1]


@pytest.mark.parametrize(
    ("number", "kept"), [(1 + 2**-8, 1.0), (1 + 3 * 2**-8, 1 + 2**-6), (1 + 2**-7, 1 + 2**-7)]
)
def test_bfloat16_rounds_half_to_even(number: float, kept: float) -> None:
    assert plain.to_bfloat16(np.array([number, -number])).tolist() == [kept, -kept]


def test_unpacking_by_hand() -> None:
    """Code i of a word lies in its bits 4 × i on."""
    words = mx.array([[0x76543210] * 4], mx.uint32)
    scales, biases = mx.array([[0.5]], mx.float16), mx.array([[-1.0]], mx.float16)
    values, slack = plain.unpack((words, scales, biases), 32, 4)
    assert values.tolist() == [[i % 8 * 0.5 - 1 for i in range(32)]]
    assert set(slack.ravel()) == {0.75 + 2**-11}


def test_tf32_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of float32 that keeps ten bits, as tensor cores have them, is found out."""

    array = mx.array

    def coarse(x: np.ndarray) -> mx.array:
        return array((x.view(np.uint32) & 0xFFFFE000).view(np.float32))

    assert plain.rounding(mx.float32) == 2**-24
    monkeypatch.setattr(plain.mx, "array", coarse)
    assert 2**-11 < plain.rounding(mx.float32) <= 2**-10
    assert plain.rounding(mx.bfloat16) == 2**-9
