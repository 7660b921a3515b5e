"""Tiny models of mlx-lm's own classes with random weights: real code paths, no download."""

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from edgecortex.models.adapter import LoadedModel, wrap

VOCAB = 97
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2},
    "qwen2": {"num_hidden_layers": 2},
    "qwen3": {"num_hidden_layers": 2},
    "phi3": {"num_hidden_layers": 2},
    "gemma3_text": {
        "num_hidden_layers": 4,
        "sliding_window": 80,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 10000.0,
    },
    "deepseek_v2": {
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "kv_lora_rank": 32,
        "q_lora_rank": None,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    },
}


def make(kind: str, seed: int = 0, **more: Any) -> LoadedModel:
    """A model of one of `CONFIGS`' kinds, without a tokenizer; `more` goes before what its
    configuration says."""
    classes = importlib.import_module(f"mlx_lm.models.{kind}")
    config = {"model_type": kind, **COMMON, **CONFIGS[kind], **more}
    mx.random.seed(seed)
    model = classes.Model(classes.ModelArgs.from_dict(config))
    model.eval()
    mx.eval(model.parameters())
    return wrap(model, None, config, Path(kind))


def in_dtype(model: LoadedModel, dtype: mx.Dtype) -> LoadedModel:
    """The model itself, with weights in that type."""
    model.model.set_dtype(dtype)
    mx.eval(model.model.parameters())
    return model


def in_4_bits(model: LoadedModel) -> LoadedModel:
    """The model itself, with weights in 4 bits."""
    nn.quantize(model.model, group_size=32, bits=4)
    mx.eval(model.model.parameters())
    return model


def save(model: LoadedModel, folder: Path) -> Path:
    """Writes a folder that loads as the model, with a tokenizer of numbered words: `w5 w6`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    weights = dict(tree_flatten(model.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    words = {f"w{i}": i for i in range(model.config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "w0", "unk_token": "w1", "tokenizer_class": "PreTrainedTokenizerFast"}
    for name, facts in (
        ("config.json", {**model.config, "eos_token_id": 0}),
        ("tokenizer_config.json", names),
    ):
        (folder / name).write_text(json.dumps(facts), "utf-8")
    return folder
