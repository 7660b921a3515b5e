"""A model's linear maps as a CPU computes them."""

import mlx.core as mx
import numpy as np
import pytest

from edgecortex.models.cpu import FEW_ROWS, SOME_ROWS, multiply


@pytest.mark.parametrize("shape", [(576, 576), (1536, 576), (576, 1536), (48, 30), (7, 5)])
@pytest.mark.parametrize("num_rows", [1, FEW_ROWS, FEW_ROWS + 1, SOME_ROWS, SOME_ROWS + 1])
def test_however_many_rows_it_is_the_product(num_rows: int, shape: tuple[int, int]) -> None:
    weight = mx.random.normal(shape)
    for x in (
        mx.random.normal((num_rows, 1, shape[1])),
        mx.random.normal((1, shape[1], num_rows)).swapaxes(1, 2),
        mx.random.normal((1, 2 * num_rows, shape[1]))[:, ::2],
    ):
        found = np.array(multiply(x, weight))
        exact = np.array(x).astype(np.float64) @ np.array(weight).astype(np.float64).T
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, atol=2e-3)
