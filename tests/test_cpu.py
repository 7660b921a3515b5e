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
