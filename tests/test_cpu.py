"""What stands in for MLX's slow parts on a CPU says what MLX says."""

import threading

import mlx.core as mx
import numpy as np
import pytest

from edgecortex import cpu


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_halves_are_the_whole(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WORTH_SHARING", 0)
    x, y = mx.random.normal((length, 3, 5)), mx.random.normal((length, 5, 2))
    shared = cpu.by_halves(lambda at: x[at] @ y[at], length, x.size)
    np.testing.assert_allclose(np.array(shared), np.array(x @ y), rtol=1e-6)


def test_every_thread_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WORTH_SHARING", 0)
    found: list[np.ndarray] = []

    def work() -> None:
        x = mx.arange(8.0)[:, None]
        found.append(np.array(cpu.by_halves(lambda at: x[at] * 2, 8, 8)))

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(30)
    assert [list(x[:, 0]) for x in found] == [[0, 2, 4, 6, 8, 10, 12, 14]] * 2


def test_powers_of_two_from_the_size_on_that_numpy_takes() -> None:
    for size in (cpu.WORTH_WAITING - 1, cpu.WORTH_WAITING):
        x = mx.linspace(-20, 3, size)
        expected = np.exp2(np.array(x))
        np.testing.assert_allclose(np.array(cpu.exp2(x + 0)), expected, rtol=2e-6)


@pytest.mark.parametrize(
    "shape", [(3, 2, 5), (1, 3, 3, 1000), (2, 3, 7, 300), (5, 2000), (1, cpu.WORTH_WAITING)]
)
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("few", [False, True])
def test_weights_are_what_softmax_makes(
    shape: tuple[int, ...], bounded: bool, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few rows fit in a cache, and on how many cores."""
    if few:
        monkeypatch.setattr(cpu, "CACHED", 700)
        monkeypatch.setattr(cpu, "WORTH_HELP", 0)
    scores = np.random.default_rng(0).normal(0, 9, shape).astype(np.float32)
    scores[..., 1::3] = -1e30  # hidden
    scores[..., 0, :] = -1e30  # a row that sees nothing
    least = np.linspace(-5, 40, scores[..., 0].size, dtype=np.float32).reshape(*shape[:-1], 1)
    found = cpu.weights(mx.array(scores), mx.array(least) if bounded else None)
    top = scores.max(axis=-1, keepdims=True)
    top = np.maximum(top, least) if bounded else top
    powers = np.exp2((scores - top).astype(np.float64))
    np.testing.assert_array_equal(np.array(found.top), top)
    np.testing.assert_allclose(np.array(found.powers), powers, rtol=2e-6, atol=1e-37)
    np.testing.assert_allclose(np.array(found.total), powers.sum(-1, keepdims=True), rtol=2e-6)


@pytest.mark.parametrize("vocab", [50, cpu.WORTH_WAITING])
def test_a_distribution_and_its_logarithms(vocab: int) -> None:
    logits = 20 * np.random.default_rng(5).standard_normal((3, vocab), dtype=np.float32)
    given = mx.array(logits)
    p, log_p = cpu.distribution(given)
    exact = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(np.array(log_p), exact, atol=2e-5)
    np.testing.assert_allclose(np.array(p), np.exp(exact), atol=1e-6)
    np.testing.assert_array_equal(np.array(given), logits)


def test_what_is_made_aside_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what it is made of is overwritten at once."""
    x = mx.random.normal((300, 300))
    expected = np.array(x) * 2
    for there in (True, False):
        monkeypatch.setattr(cpu, "on_cpu", lambda there=there: there)
        buffer = x + 0
        (found,) = cpu.aside(lambda buffer=buffer: (buffer * 2,))
        buffer[:] = 0
        mx.eval(buffer)
        np.testing.assert_array_equal(np.array(found), expected)
