"""Tiny GGUF files with random weights, laid out as llama.cpp's converters lay them out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFWriter,
    TokenType,
    dequantize,
    get_tensor_name_map,
)
from gguf.constants import MODEL_ARCH
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

Weights = dict[str, np.ndarray]
F16, F32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32

NUM_LAYERS = 3
COMMON = {
    "num_hidden_layers": NUM_LAYERS,
    "vocab_size": 97,
    "hidden_size": 256,
    "intermediate_size": 512,
    "rms_norm_eps": 1e-5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 50000.0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "head_dim": 128, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "query_pre_attn_scalar": 128,
        "sliding_window": 24,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 20000.0,
    },
}
CHARACTERS = [chr(code) for code in range(ord("!"), ord("~"))]
TOKENS = {
    "gpt2": ["<s>", "<|im_end|>", "Ġ", "he", *CHARACTERS],
    "llama": ["<unk>", "<s>", "</s>", "▁", *CHARACTERS],
}
CONTROLS = {"gpt2": 2, "llama": 3}
SCALES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
"""Where in a block its fp16 numbers stand, if not only at its start."""


def model_of(kind: str, weights: Weights | None = None) -> Any:
    """mlx-lm's own model; `weights` are those of a safetensors repository."""
    config = {**COMMON, **CONFIGS[kind]}
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    if weights is not None:
        arrays = {name: mx.array(values) for name, values in weights.items()}
        model.load_weights(list(model.sanitize(arrays).items()))
    return model


def blocks(kind: GGMLQuantizationType, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """`(rows, bytes)` of a quantized matrix: any bytes, with scales of some hundredths."""
    rng = np.random.default_rng(seed)
    num_values, num_bytes = GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, columns // num_values, num_bytes), np.uint8)
    for start in SCALES.get(kind.name, [0]):
        scales = rng.uniform(-0.05, 0.05, data.shape[:2]).astype(np.float16)
        data[..., start : start + 2] = scales[..., None].view(np.uint8)
    return data.reshape(rows, -1)


def write(
    path: Path,
    kind: str = "llama",
    matrices: GGMLQuantizationType = F16,
    *,
    architecture: str | None = None,
    tokenizer: str = "gpt2",
    merges: Sequence[str] = ("h e",),
    extra: Weights | None = None,
    without: str | None = None,
    norm: float | None = None,
) -> Weights:
    """Writes a file of one of `CONFIGS`' kinds, and gives the weights before the conversion.

    Args:
        matrices: the type of all matrices; norms and biases are fp32, as usual.
        extra, without: more tensors, or one less, by GGUF's names.
        norm: what the first number of the last norm is instead.
    """
    writer = GGUFWriter(path, architecture or kind)
    _add_metadata(writer, {**COMMON, **CONFIGS[kind]})
    _add_tokenizer(writer, tokenizer, merges)
    weights = _add_weights(writer, kind, matrices, without, norm)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _add_weights(
    writer: GGUFWriter,
    kind: str,
    matrices: GGMLQuantizationType,
    without: str | None,
    norm: float | None,
) -> Weights:
    names = get_tensor_name_map(MODEL_ARCH[kind.upper()], NUM_LAYERS)
    weights: Weights = {}
    for seed, (name, like) in enumerate(tree_flatten(model_of(kind).parameters())):
        if kind == "gemma3" and name == "lm_head.weight":
            continue  # tied; mlx-lm's class makes one all the same
        weights[name], stored = _tensor(like.shape, matrices, seed)
        if norm is not None and name == "model.norm.weight":
            stored[0] = norm
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        raw_type = matrices if stored.dtype == np.uint8 else None
        if gguf_name != without:
            writer.add_tensor(gguf_name, _as_converted(kind, name, stored), raw_dtype=raw_type)
    return weights


def _tensor(
    shape: tuple[int, ...], kind: GGMLQuantizationType, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values in fp32, and the same as they are stored."""
    rng = np.random.default_rng(seed)
    if len(shape) == 1:  # in steps of 1/256, so that an offset of 1 is exact
        values = rng.integers(-128, 128, shape).astype(np.float32) / 256
        return values, values
    if kind in (F16, F32):
        values = rng.normal(0, 0.05, shape).astype(np.float16 if kind == F16 else np.float32)
        return values.astype(np.float32), values
    stored = blocks(kind, *shape, seed)
    return dequantize(stored, kind), stored


def _as_converted(kind: str, name: str, values: np.ndarray) -> np.ndarray:
    """llama: rows of q and k in the order of interleaved RoPE. gemma3: 1 is added to norms."""
    if kind == "gemma3" and "norm" in name:
        return values + 1
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    if kind != "llama" or key is None:
        return values
    num_heads = COMMON[key]
    halves = values.reshape(num_heads, 2, len(values) // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _add_metadata(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
    if "sliding_window" in config:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_sliding_window_pattern(config["sliding_window_pattern"])
        writer.add_rope_freq_base_swa(config["rope_local_base_freq"])


def _add_tokenizer(writer: GGUFWriter, kind: str, merges: Sequence[str]) -> None:
    """A vocabulary of single characters; an unknown kind gets that of gpt2."""
    known = kind if kind in TOKENS else "gpt2"
    tokens, num_controls = TOKENS[known], CONTROLS[known]
    num_normal = len(tokens) - num_controls
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * num_controls + [TokenType.NORMAL] * num_normal)
    writer.add_eos_token_id(num_controls - 1)
    if known == "gpt2":
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(merges)
    else:
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_bos_token_id(1)
