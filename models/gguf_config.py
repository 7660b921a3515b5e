"""What a GGUF file's metadata means in the terms of `config.json`, per architecture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgecortex.errors import ModelError
from edgecortex.models.gguf_reader import GGUFFile
from edgecortex.models.gguf_tensors import dense

Config = dict[str, Any]

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_LAYER = _LAYER | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture maps to a model class of mlx-lm.

    `permuted`: rows of q and k are stored in the order of interleaved RoPE.
    `norm_offset`: what GGUF has added to the weights of norms and the model class adds itself.
    """

    model_type: str
    class_name: str
    extra: Callable[[GGUFFile, Config], Config]
    layer_names: dict[str, str] = field(default_factory=lambda: _LAYER)
    permuted: bool = False
    norm_offset: float = 0.0

    def name(self, gguf_name: str) -> str | None:
        """The parameter's name in the folder, None for an unknown tensor."""
        stem, _, kind = gguf_name.rpartition(".")
        if stem in _TOP:
            return f"{_TOP[stem]}.{kind}"
        first, _, rest = stem.partition(".")
        layer, _, part = rest.partition(".")
        if first == "blk" and part in self.layer_names:
            return f"model.layers.{layer}.{self.layer_names[part]}.{kind}"
        return None

    def required(self, num_layers: int) -> set[str]:
        """The parameters that every model of this architecture has."""
        layers = (f"model.layers.{layer}" for layer in range(num_layers))
        parts = self.layer_names.values()
        in_layers = {f"{layer}.{part}.weight" for layer in layers for part in parts}
        return {"model.embed_tokens.weight", "model.norm.weight", *in_layers}


def _llama(file: GGUFFile, config: Config) -> Config:
    names = {tensor.name for tensor in file.tensors}
    return {
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "head_dim": file.get("llama.attention.key_length")
        or config["hidden_size"] // config["num_attention_heads"],
        "rope_scaling": _llama3_scaling(file, config) or config["rope_scaling"],
    }


def _qwen2(file: GGUFFile, config: Config) -> Config:
    return {}


def _gemma3(file: GGUFFile, config: Config) -> Config:
    head_dim = file.require("gemma3.attention.key_length")
    # Of the family only the 27B model, known by its 62 layers, scales by the width of a head's
    # share of the model; the others by head_dim.
    wide = config["num_hidden_layers"] == 62
    scalar = config["hidden_size"] // config["num_attention_heads"] if wide else head_dim
    return {
        "head_dim": head_dim,
        "query_pre_attn_scalar": scalar,
        "sliding_window": file.require("gemma3.attention.sliding_window"),
        "sliding_window_pattern": file.get("gemma3.attention.sliding_window_pattern", 6),
        "rope_local_base_freq": file.get("gemma3.rope.freq_base_swa", 10_000.0),
        "rope_theta": file.get("gemma3.rope.freq_base", 1_000_000.0),
    }


ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _llama, permuted=True),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _qwen2),
    "gemma3": Architecture(
        "gemma3_text", "Gemma3ForCausalLM", _gemma3, _GEMMA3_LAYER, norm_offset=1.0
    ),
}


def architecture(file: GGUFFile) -> Architecture:
    """
    Raises:
        ModelError: an architecture that is not imported; the message lists those that are.
    """
    if file.architecture not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: expected a GGUF architecture of {', '.join(ARCHITECTURES)}, "
            f"got {file.architecture!r}; use the model's safetensors repository instead"
        )
    return ARCHITECTURES[file.architecture]


def build_config(file: GGUFFile) -> Config:
    """`config.json` without the quantization.

    Raises:
        ModelError: metadata is missing, or asks for a RoPE scaling that is not known.
    """
    arch, prefix = architecture(file), file.architecture
    num_heads = file.require(f"{prefix}.attention.head_count")
    config: Config = {
        "model_type": arch.model_type,
        "architectures": [arch.class_name],
        "hidden_size": file.require(f"{prefix}.embedding_length"),
        "num_hidden_layers": file.require(f"{prefix}.block_count"),
        "intermediate_size": file.require(f"{prefix}.feed_forward_length"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": file.get(f"{prefix}.attention.head_count_kv", num_heads),
        "rms_norm_eps": _shortest(file.require(f"{prefix}.attention.layer_norm_rms_epsilon")),
        "vocab_size": len(file.require("tokenizer.ggml.tokens")),
        "max_position_embeddings": file.require(f"{prefix}.context_length"),
        "rope_theta": file.get(f"{prefix}.rope.freq_base", 10_000.0),
        "rope_scaling": _linear_scaling(file),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in file.tensors),
        "torch_dtype": "float16",
    }
    return config | arch.extra(file, config)


def _shortest(value: float) -> float:
    """A number that was stored in fp32, as it was written: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _linear_scaling(file: GGUFFile) -> Config | None:
    kind = file.get(f"{file.architecture}.rope.scaling.type", "none")
    factor = file.get(f"{file.architecture}.rope.scaling.factor", 1.0)
    if kind == "none":
        return None
    if kind != "linear":
        raise ModelError(f"{file.path}: expected RoPE scaling 'none' or 'linear', got {kind!r}")
    return {"rope_type": "linear", "factor": factor}


def _llama3_scaling(file: GGUFFile, config: Config) -> Config | None:
    """Llama 3.1 and later: GGUF keeps the frequencies' divisors, `config.json` their recipe.

    The recipe's constants have been the same in all of that family; the divisors that they give
    are compared with those in the file.
    """
    stored = next((t for t in file.tensors if t.name == "rope_freqs.weight"), None)
    if stored is None:
        return None
    divisors = dense(stored)
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not np.allclose(divisors, _llama3_divisors(scaling, config, len(divisors)), rtol=1e-3):
        raise ModelError(f"{file.path}: expected the RoPE frequencies of Llama 3, got others")
    return scaling


def _llama3_divisors(scaling: Config, config: Config, num_freqs: int) -> np.ndarray:
    """`(num_freqs,)`: 1 for short wavelengths, `factor` for long ones, blended between."""
    wavelengths = 2 * np.pi * config["rope_theta"] ** (np.arange(num_freqs) / num_freqs)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (blend + (1 - blend) / scaling["factor"])
