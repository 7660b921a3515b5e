"""Builds `tokenizer.json` and `tokenizer_config.json` from the vocabulary in a GGUF file."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as bpe
from tokenizers.processors import TemplateProcessing

from edgecortex.errors import ModelError
from edgecortex.models.gguf_reader import GGUFFile

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "▁"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "qwen2": [_QWEN2],
    "llama-bpe": [_LLAMA3],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}
"""`tokenizer.ggml.pre` to the regular expressions that cut text before BPE, one after the other."""

_END_OF_TURN = {
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
}
"""Control tokens that end an answer, whatever the metadata names as end of sequence."""


def write_tokenizer(file: GGUFFile, folder: Path) -> list[int]:
    """Writes both files into `folder`.

    Returns:
        The ids of all tokens that end an answer.

    Raises:
        ModelError: a kind of tokenizer that is not known.
    """
    tokens: list[str] = file.require("tokenizer.ggml.tokens")
    kinds: list[int] = file.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    kind = file.require("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"{file.path}: expected a tokenizer of the kind gpt2 or llama, got {kind!r}; "
            "use the model's safetensors repository instead"
        )
    tokenizer = _byte_level(file, tokens) if kind == "gpt2" else _sentencepiece(file, tokens, kinds)
    _add_special(tokenizer, tokens, kinds)
    special = _special_tokens(file, tokens)
    if _adds_bos(file, kind) and "bos_token" in special:
        bos = special["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(_tokenizer_config(file, special), ensure_ascii=False, indent=2), "utf-8"
    )
    return _eos_ids(file, tokens, kinds)


def _byte_level(file: GGUFFile, tokens: list[str]) -> Tokenizer:
    pre = file.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise ModelError(
            f"{file.path}: expected a pre-tokenizer of {', '.join(_SPLITS)}, got {pre!r}; "
            "use the model's safetensors repository instead"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in file.require("tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for first, second in merges:
        if not {first, second, first + second} <= vocabulary.keys():
            raise ModelError(
                f"{file.path} is damaged: it merges {first!r} and {second!r} to no token"
            )
    tokenizer = Tokenizer(bpe.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in _SPLITS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GGUFFile, tokens: list[str], kinds: list[int]) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    scores = file.require("tokenizer.ggml.scores")
    tokenizer = Tokenizer(
        bpe.BPE(
            vocabulary,
            _merges(vocabulary, scores, kinds),
            unk_token=tokens[file.get("tokenizer.ggml.unknown_token_id", 0)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    )
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(
    vocabulary: dict[str, int], scores: list[float], kinds: list[int]
) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best-scored token first.

    Sentencepiece's BPE joins whichever neighbours make the token of the highest score; with
    merges ranked like this `tokenizers` does the same.
    """
    merges = []
    ranked = sorted(vocabulary.items(), key=lambda item: scores[item[1]], reverse=True)
    for token, index in ranked:
        if kinds[index] == _NORMAL:
            pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            merges += [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
    return merges


def _add_special(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    """Control tokens, and those that are matched in text before anything else."""
    pairs = list(zip(tokens, kinds, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t, kind in pairs if kind in (_UNKNOWN, _CONTROL)]
    )
    tokenizer.add_tokens(
        [AddedToken(t, normalized=False) for t, kind in pairs if kind == _USER_DEFINED]
    )


def _special_tokens(file: GGUFFile, tokens: list[str]) -> dict[str, str]:
    fields = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: file.get(f"tokenizer.ggml.{name}_token_id") for role, name in fields.items()}
    return {f"{role}_token": tokens[index] for role, index in ids.items() if index is not None}


def _adds_bos(file: GGUFFile, kind: str) -> bool:
    by_kind = kind == "llama" or file.get("tokenizer.ggml.pre") == "llama-bpe"
    return bool(file.get("tokenizer.ggml.add_bos_token", by_kind))


def _tokenizer_config(file: GGUFFile, special: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": file.require(f"{file.architecture}.context_length"),
        **special,
    }
    if template := file.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return config


def _eos_ids(file: GGUFFile, tokens: list[str], kinds: list[int]) -> list[int]:
    named = (file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    known = (
        index
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL and token in _END_OF_TURN
    )
    return sorted({*known, *(index for index in named if index is not None)})
