"""The package's tiny models, and their weights in a folder of their own."""

from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from edgecortex.models.adapter import LoadedModel
from edgecortex.models.tiny import CONFIGS, VOCAB, make

__all__ = ["CONFIGS", "VOCAB", "make", "save_weights"]


def save_weights(model: LoadedModel, folder: Path) -> Path:
    """A folder with a model's weights, by which a store can tell it from others."""
    path = folder / "model"
    path.mkdir()
    weights = {name: x for name, x in tree_flatten(model.model.parameters())}
    mx.save_safetensors(str(path / "model.safetensors"), weights)
    return path
