"""Keys and queries moved to other positions."""

from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex import plain, selftest_models
from edgecortex.models import cpu, tiny
from edgecortex.models.adapter import LoadedModel

LONGER = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MOVED = "llama: moved to other positions"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "of scaled frequencies": ("llama", {"rope_scaling": LONGER}),
    "gemma3": ("gemma3_text", {}),
}


@cache
def made(name: str, fast: bool) -> LoadedModel:
    kind, more = MODELS[name]
    model = tiny.make(kind, **more)
    if fast:
        cpu.speed_up(model.model)
    return model


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=20)
@given(by=st.integers(1, 4000), layer=st.integers(0, 1))
def test_back_is_where_they_were(name: str, fast: bool, by: int, layer: int) -> None:
    model = made(name, fast)
    x = mx.random.normal((2, 3, 32))
    there = model.turned(layer, x, by)
    assert float(mx.abs(there - x).max()) > 0.01
    np.testing.assert_allclose(model.turned(layer, there, -by), x, atol=1e-4)
    np.testing.assert_allclose(model.turned(layer, model.turned(layer, x, -by), by), x, atol=1e-4)


def test_by_the_formula() -> None:
    model, x = tiny.make("llama"), mx.random.normal((2, 4, 32))
    for by in (5, -5, -999):
        rows = plain.numbers(x).swapaxes(0, 1)[:, :, None]
        want = plain.rope(rows, np.full(4, by))[:, :, 0].swapaxes(0, 1)
        np.testing.assert_allclose(model.turned(0, x, by), want, atol=1e-4)


def test_a_rotary_embedding_gets_no_position_below_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's kernels for GPUs would take it for one above 4 billion."""
    model, asked = tiny.make("llama"), []
    rope = model.model.layers[0].self_attn.rope

    def watched(x: mx.array, offset: mx.array) -> mx.array:
        asked.extend(offset.tolist())
        found: mx.array = rope(x, offset=offset)
        return found

    monkeypatch.setattr(model.model.layers[0].self_attn, "rope", watched)
    mx.eval(model.turned(0, mx.ones((1, 2, 32)), -7))
    assert asked == [7, 7]


def test_the_self_test_sees_what_ignores_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    def ignoring(self: LoadedModel, layer: int, x: mx.array, by: int) -> mx.array:
        return own(self, layer, x, by % 2**20)

    own, check = LoadedModel.turned, selftest_models.segment_checks()[MOVED]
    found = check()
    assert 0 < found.error < found.tolerance
    monkeypatch.setattr(LoadedModel, "turned", ignoring)
    assert check().error > found.tolerance
