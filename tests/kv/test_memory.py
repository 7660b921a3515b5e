"""Arrays that MLX has not written."""

import mlx.core as mx
import numpy as np

from edgecortex.kv.memory import unwritten


def test_what_is_written_through_numpy_is_there_in_mlx() -> None:
    dtypes = (mx.float32, mx.float16, mx.uint32, mx.uint16)
    shapes = {str(i): ((3, i + 1, 5000), dtype) for i, dtype in enumerate(dtypes)}
    arrays = unwritten(shapes)
    assert {name: (x.shape, x.dtype) for name, x in arrays.items()} == shapes
    for i, x in enumerate(arrays.values()):
        np.array(x, copy=False)[...] = i + 1
    for i, x in enumerate(arrays.values()):
        assert mx.all(x == i + 1).item()
    assert unwritten({}) == {}
