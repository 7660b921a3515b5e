"""Turns a GGUF file into a folder that mlx-lm opens as it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import ReaderTensor

from edgecortex.errors import ModelError
from edgecortex.models.folders import Progress, check_room
from edgecortex.models.gguf_config import Architecture, architecture, build_config
from edgecortex.models.gguf_reader import GGUFFile, damage_reported, open_gguf
from edgecortex.models.gguf_tensors import (
    GROUP_SIZE,
    Arrays,
    affine_bits,
    dense,
    quantized,
    to_half,
    write_safetensors,
)
from edgecortex.models.gguf_tokenizer import write_tokenizer

_ROPE_FREQUENCIES = "rope_freqs.weight"


def import_gguf(path: Path, folder: Path, progress: Progress) -> None:
    """Writes `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json` and
    `tokenizer_config.json` into an existing folder.

    Raises:
        ModelError: not GGUF, damaged, or an architecture, tokenizer or tensor that is not known.
    """
    progress("read", 0, 1)
    file = open_gguf(path)
    progress("read", 1, 1)
    with damage_reported(path):
        _write_folder(file, folder, progress)


def _write_folder(file: GGUFFile, folder: Path, progress: Progress) -> None:
    arch, config = architecture(file), build_config(file)
    tensors = _named_tensors(file, arch)
    _check_complete(file, tensors, arch, config["num_hidden_layers"])
    check_room(folder, _folder_bytes(tensors))
    config |= _quantization(tensors)
    config["eos_token_id"] = write_tokenizer(file, folder)
    config["bos_token_id"] = file.get("tokenizer.ggml.bos_token_id")
    write_safetensors(
        folder / "model.safetensors",
        _convert(tensors, arch, config, progress),
        num_tensors=3 * len(tensors),
        metadata={"format": "mlx"},
    )
    _write_json(folder / "config.json", config)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    _write_json(folder / "generation_config.json", generation)


def _named_tensors(file: GGUFFile, arch: Architecture) -> dict[str, ReaderTensor]:
    tensors = {}
    for tensor in file.tensors:
        name = arch.name(tensor.name)
        if name:
            tensors[name] = tensor
        elif tensor.name != _ROPE_FREQUENCIES:
            raise ModelError(
                f"{file.path}: the tensor {tensor.name!r} is not part of a plain "
                f"{file.architecture} model; use the model's safetensors repository instead"
            )
    return tensors


def _check_complete(
    file: GGUFFile, tensors: dict[str, ReaderTensor], arch: Architecture, num_layers: int
) -> None:
    if num_layers > len(tensors):  # a damaged number may be too large to list what it asks for
        missing = [f"most of {num_layers:,} layers"]
    else:
        missing = sorted(arch.required(num_layers) - tensors.keys())
    if missing:
        raise ModelError(
            f"{file.path}: expected a whole model, got one without {missing[0]} ({len(missing)} "
            "are missing); if it is split into several files, join them first"
        )


_TOKENIZER_BYTES = 64 << 20


def _folder_bytes(tensors: dict[str, ReaderTensor]) -> int:
    """Room for the folder: affine tensors take a little more than in the file, others 16 bits."""
    stored = (
        1.15 * int(tensor.n_bytes) if affine_bits(tensor) else 2 * int(tensor.n_elements)
        for tensor in tensors.values()
    )
    return int(sum(stored)) + _TOKENIZER_BYTES


def _quantization(tensors: dict[str, ReaderTensor]) -> dict[str, Any]:
    """The entry of `config.json`: 4 bits, and each layer that has others."""
    layers = {name.removesuffix(".weight"): affine_bits(t) for name, t in tensors.items()}
    if not any(layers.values()):
        return {}
    others = {
        name: {"group_size": GROUP_SIZE, "bits": bits}
        for name, bits in layers.items()
        if bits and bits != 4
    }
    return {"quantization": {"group_size": GROUP_SIZE, "bits": 4, **others}}


def _convert(
    tensors: dict[str, ReaderTensor],
    arch: Architecture,
    config: dict[str, Any],
    progress: Progress,
) -> Iterator[Arrays]:
    total = sum(int(tensor.n_bytes) for tensor in tensors.values())
    done = 0
    for name, tensor in tensors.items():
        progress("convert", done, total)
        yield _arrays(name, tensor, arch, config)
        done += int(tensor.n_bytes)
    progress("convert", total, total)


def _arrays(name: str, tensor: ReaderTensor, arch: Architecture, config: dict[str, Any]) -> Arrays:
    """One tensor's arrays under their names in the folder."""
    if affine_bits(tensor):
        stem = name.removesuffix(".weight")
        parts = zip(("weight", "scales", "biases"), quantized(tensor), strict=True)
        arrays = {f"{stem}.{part}": array for part, array in parts}
    else:
        offset = arch.norm_offset if "norm" in name else 0.0
        arrays = {name: to_half(name, dense(tensor) - np.float32(offset))}
    if arch.permuted and ".self_attn." in name:
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        key = heads.get(name.split(".")[-2])
        if key:
            arrays = {part: _unpermute(rows, config[key]) for part, rows in arrays.items()}
    return arrays


def _unpermute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows in the order of interleaved RoPE, back to halves: even rows of a head, then odd."""
    split = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
