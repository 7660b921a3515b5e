"""A model folder with random weights in a published measurement's shape: what KV takes depends
on nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.qwen2 import Model, ModelArgs

from edgecortex.bench.side import serve


def make(folder: str, tokenizer_of: str, shape: dict[str, Any]) -> int:
    """Writes a Qwen2 model, with the tokenizer and the vocabulary of the model in `tokenizer_of`.

    Args:
        shape: what `config.json` says beside the kind and the vocabulary's size.

    Returns: its number of weights.
    """
    source, target = Path(tokenizer_of), Path(folder)
    given = json.loads((source / "config.json").read_text())
    config = {"model_type": "qwen2", "vocab_size": given["vocab_size"], **shape}
    model = Model(ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    weights = dict(tree_flatten(model.parameters()))
    target.mkdir(exist_ok=True)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, target)
    (target / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(target / "model.safetensors"), weights)
    return sum(array.size for array in weights.values())


if __name__ == "__main__":
    serve({"make": make})
