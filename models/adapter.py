"""The one place that imports mlx-lm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgecortex import blas
from edgecortex.errors import ModelError

_ = blas.load()


def compute_dtype() -> mx.Dtype | None:
    """The dtype weights are converted to at load: fp32 on a CPU, None (as stored) elsewhere."""
    return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else None


class Tokenizer:
    """mlx-lm's tokenizer behind the few calls that are needed here."""

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self.eos_token_ids: set[int] = set(wrapper.eos_token_ids)
        self.has_chat_template: bool = wrapper.has_chat_template

    def encode(self, text: str, *, first: bool) -> list[int]:
        """Token ids of `text`. A template writes the start token itself."""
        special = first and not self.has_chat_template
        return list(self.wrapper.encode(text, add_special_tokens=special))

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.wrapper.decode(list(token_ids)))

    def render(self, messages: list[dict[str, str]]) -> str:
        """Prompt text up to the answer; a model without a template continues plain text."""
        if not self.has_chat_template:
            return "".join(message["content"] for message in messages)
        return str(
            self.wrapper.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )

    def detokenizer(self) -> Any:
        """A fresh streaming detokenizer: `add_token`, `last_segment`, `finalize`."""
        return self.wrapper.detokenizer


@dataclass
class LoadedModel:
    """A model ready to run, with its tokenizer and the facts that the engine needs."""

    path: Path
    model: Any
    tokenizer: Tokenizer
    config: dict[str, Any]

    @property
    def context_length(self) -> int:
        """The longest context the model was made for, in tokens."""
        return int(self.config.get("max_position_embeddings") or 4096)

    def make_cache(self) -> list[Any]:
        from mlx_lm.models.cache import make_prompt_cache

        return list(make_prompt_cache(self.model))

    def trim(self, cache: list[Any], num_tokens: int) -> bool:
        """Drops the newest tokens of a cache; False if this kind cannot."""
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        if num_tokens and not can_trim_prompt_cache(cache):
            return False
        trim_prompt_cache(cache, num_tokens)
        return True

    def make_sampler(self, sampling: Any) -> Any:
        from mlx_lm.sample_utils import make_sampler

        if sampling.seed is not None:
            mx.random.seed(sampling.seed)
        return make_sampler(sampling.temperature, sampling.top_p)


def load_model(path: Path) -> LoadedModel:
    """Loads a folder in mlx-lm's layout. On a CPU weights become fp32.

    Raises:
        ModelError: the folder is incomplete, damaged or of an unsupported kind.
    """
    from mlx_lm.utils import dequantize_model, load

    try:
        model, wrapper, config = load(str(path), lazy=True, return_config=True)
        dtype = compute_dtype()
        if dtype is not None:
            model = dequantize_model(model)
            model.set_dtype(dtype)
        mx.eval(model.parameters())
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"cannot load the model in {path}: {error}") from error
    return LoadedModel(path, model, Tokenizer(wrapper), config)


def common_prefix_len(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    from mlx_lm.utils import common_prefix_len as count

    return int(count(a, b))
