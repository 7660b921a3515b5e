"""What is done another way with MLX's CUDA build, as far as that can be seen without one."""

import mlx.core as mx
import pytest

from edgecortex import selftest
from edgecortex.kv import segment
from edgecortex.kv.format import FORMATS
from edgecortex.runner import measure_dense_from


def test_with_cuda_sealed_runs_are_read_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were there: nothing multiplies them as they are stored, nor is that checked."""
    shape = (2, 64, 64, mx.float32)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    assert measure_dense_from(FORMATS["kv4"], shape) > 1
    stored = {"quantized_matmul of views", "quantized_matmul, 4 bits, float32"}
    assert stored <= set(selftest.GROUPS["mlx"]())
    monkeypatch.setattr(segment, "on_cpu", lambda: False)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    assert measure_dense_from(FORMATS["kv4"], shape) == 1
    checks = selftest.GROUPS["mlx"]() | selftest.GROUPS["attention"]()
    left = [name for name in checks if "quantized_matmul" in name]
    assert left == [name for name in left if name.endswith("transposed")] != []
    monkeypatch.delattr(segment, "_quantized")
    measured = selftest.outcome("attention", "kv4", checks["kv4, window of 70"])
    assert measured.passed
