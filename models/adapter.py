"""The one place that imports mlx-lm."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from edgecortex import blas
from edgecortex.cpu import on_cpu
from edgecortex.errors import ModelError
from edgecortex.models import cpu

_ = blas.load()


def compute_dtype() -> mx.Dtype | None:
    """The dtype weights are converted to at load: fp32 on a CPU, None (as stored) elsewhere."""
    return mx.float32 if on_cpu() else None


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
    selection: "Selection"

    @property
    def context_length(self) -> int:
        """The longest context the model was made for, in tokens."""
        return int(self.config.get("max_position_embeddings") or 4096)

    def windows(self) -> list[int | None]:
        """Per layer the sliding window in tokens, or None for full attention.

        Raises:
            ModelError: a layer keeps something else than keys and values.
        """
        from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

        kinds = make_prompt_cache(self.model)
        for cache in kinds:
            if type(cache) not in (KVCache, RotatingKVCache):
                raise ModelError(
                    f"{self.path.name} cannot run here: expected attention layers only, got a "
                    f"layer with {type(cache).__name__} (recurrent and chunked layers are not "
                    "supported); choose another model"
                )
        return [cache.max_size if isinstance(cache, RotatingKVCache) else None for cache in kinds]

    def forward(self, rows: mx.array, caches: Sequence[Any], wanted: mx.array | None) -> mx.array:
        """Logits of the `wanted` rows (all if None): (T, 1) token ids to (wanted, vocab)."""
        self.selection.rows = wanted
        try:
            return self.model(rows, cache=list(caches))[:, -1]
        finally:
            self.selection.rows = None

    def turned(self, layer: int, x: mx.array, by: int | mx.array) -> mx.array:
        """A layer's keys or queries (n_heads, L, head_dim) as they would be `by` positions further
        on, if the rotary embedding can be applied twice: each by its own if it is (L,), of numbers
        that are not negative, or all by one integer.

        Raises:
            AttributeError: the layer has none of the usual kind.
        """
        rows = x.swapaxes(0, 1)[:, :, None]
        rope: Callable[..., mx.array] = self.model.layers[layer].self_attn.rope
        back = isinstance(by, int) and by < 0
        steps = mx.broadcast_to(mx.array(-by if back else by, mx.int32), (len(rows),))
        if back:  # the transpose of a turn: MLX's GPU kernels take no positions below 0
            turned = mx.vjp(lambda y: rope(y, offset=steps), [rows], [rows])[1][0]
        else:
            turned = rope(rows, offset=steps)
        return turned[:, :, 0].swapaxes(0, 1)

    def reference(self, token_ids: Sequence[int]) -> mx.array:
        """Logits of mlx-lm's own attention without any cache, (L, vocab)."""
        return self.model(mx.array([list(token_ids)]))[0]


class Selection:
    """Which rows of a step go on to the output head, and the last hidden states of all rows
    (T, 1, hidden_size)."""

    rows: mx.array | None = None
    hidden: mx.array | None = None


def _route_attention(model: Any, path: Path) -> None:
    """Sends attention of our caches to the cache itself, wherever a layer's module asks for it.

    Raises:
        ModelError: a layer's module does not call `scaled_dot_product_attention` by name.
    """
    for layer in model.layers:
        module = sys.modules[type(layer.self_attn).__module__]
        own = getattr(module, "scaled_dot_product_attention", None)
        if own is None:
            raise ModelError(
                f"{path.name} cannot run here: expected {module.__name__} to attend through "
                "scaled_dot_product_attention, got another way; choose another model"
            )
        if not getattr(own, "routes_to_cache", False):
            module.scaled_dot_product_attention = _dispatcher(own)  # type: ignore[attr-defined]


def _dispatcher(own: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attend(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        cache: Any = None,
        scale: float = 1.0,
        mask: Any = None,
        sinks: Any = None,
    ) -> mx.array:
        if not hasattr(cache, "attend"):
            extra = {} if sinks is None else {"sinks": sinks}
            return own(q, k, v, cache=cache, scale=scale, mask=mask, **extra)
        if sinks is not None:
            raise ModelError("attention with learned sinks is not supported; choose another model")
        return cache.attend(q, scale)

    attend.routes_to_cache = True  # type: ignore[attr-defined]
    return attend


def _select_rows(model: Any) -> Selection:
    """Makes the backbone hand only the selected rows to the output head."""
    selection = Selection()
    backbone = getattr(model, "language_model", model).model
    kind = type(backbone)

    class Selecting(kind):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
            hidden = super().__call__(*args, **kwargs)
            selection.hidden = hidden
            return hidden if selection.rows is None else hidden[selection.rows]

    backbone.__class__ = Selecting
    return selection


def load_model(path: Path) -> LoadedModel:
    """Loads a folder in mlx-lm's layout. On a CPU weights become fp32.

    Raises:
        ModelError: the folder is incomplete, damaged or of an unsupported kind.
    """
    from mlx_lm.utils import dequantize_model, load

    try:
        loaded: Any = load(str(path), lazy=True, return_config=True)
        model, wrapper, config = loaded
        dtype = compute_dtype()
        if dtype is not None:
            # Scales first: dequantized in fp16 the weights would be rounded to it.
            model.set_dtype(dtype)
            model = dequantize_model(model)
            cpu.speed_up(model)
        mx.eval(model.parameters())
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"cannot load the model in {path}: {error}") from error
    return wrap(model, Tokenizer(wrapper), config, path)


def wrap(model: Any, tokenizer: Any, config: dict[str, Any], path: Path) -> LoadedModel:
    """Makes an mlx-lm model attend through our caches and hand on only the rows asked for.

    Raises:
        ModelError: it is not built as a decoder whose layers attend by name.
    """
    try:
        _route_attention(model, path)
        return LoadedModel(path, model, tokenizer, config, _select_rows(model))
    except AttributeError as error:
        raise ModelError(
            f"{path.name} cannot run here: expected a decoder with `model` and layers with "
            f"`self_attn`, got {error}; choose another model"
        ) from error
