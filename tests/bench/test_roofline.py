"""The benchmark of the machine's limits, small; what it counts, against models counted by hand."""

import os
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from edgecortex.bench import roofline
from edgecortex.bench.roofline import (
    HEADS,
    Work,
    _num_attended,
    _num_heads,
    _num_inputs,
    _num_weights,
)
from edgecortex.config import EngineConfig
from edgecortex.errors import EdgeCortexError
from edgecortex.models.adapter import load_model
from edgecortex.runner import ModelRunner
from tests import tiny

TOKENS = 128
DISK = ["disk, page cache", *(["disk, page cache dropped"] if hasattr(os, "posix_fadvise") else [])]


@pytest.fixture(scope="module")
def report(smollm2: Path) -> dict[str, Any]:
    said: list[str] = []
    found = roofline.roofline(
        str(smollm2), [TOKENS], said.append, num_steps=2, memory_bytes=1 << 24
    )
    assert said.count(f"reading {TOKENS} tokens, 2 of {roofline.ROUNDS}") == 1
    return found


def rows(report: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [row for row in report["rows"] if row["what"] == what]


def test_the_machine_is_measured(report: dict[str, Any]) -> None:
    rates = {row["rate_of"]: row for row in rows(report, "machine")}
    products = ["products, square", "products, 16 rows"]
    assert list(rates) == [*products, "memory, read", "memory, copy", "exp", "exp2, our own", *DISK]
    assert all(row["rate"] > 0 for row in rates.values())
    assert {rates[name]["unit"] for name in products} == {"GFLOP/s"}
    assert {rates[name]["unit"] for name in DISK} == {"GB/s"}


def test_limits_follow_from_the_rates(report: dict[str, Any], smollm2: Path) -> None:
    rates = {row["rate_of"]: 1e9 * row["rate"] for row in rows(report, "machine")}
    limits = {row["limit_of"]: row for row in rows(report, "limit")}
    assert list(limits) == ["decode, 1", "decode, 16", "prefill, 128", "restored, 128"]
    loaded = load_model(smollm2)
    work = Work.of(loaded, ModelRunner(loaded, EngineConfig()).shapes)
    memory_s = work.weight_bytes / rates["memory, read"]
    products_s = 2 * 16 * 134_479_872 / rates["products, square"]
    assert limits["decode, 16"]["limit"] == pytest.approx(max(memory_s, products_s))
    slower = "memory" if memory_s > products_s else "products"
    assert limits["decode, 16"]["bound_by"] == slower
    tokens_per_s = TOKENS * rates["products, square"] / work.prompt_ops(TOKENS)
    assert limits["prefill, 128"]["limit"] == pytest.approx(tokens_per_s)


def test_each_round_measures_the_machine_and_the_engine(report: dict[str, Any]) -> None:
    of_it = [row for row in report["rows"] if "round" in row]
    assert [row["round"] for row in of_it] == sorted(row["round"] for row in of_it)
    for number in range(1, roofline.ROUNDS + 1):
        kinds = [row["what"] for row in of_it if row["round"] == number]
        assert kinds == [*["machine"] * 6, *["limit"] * 3]


def test_shares_are_of_the_limits(report: dict[str, Any]) -> None:
    limits = rows(report, "limit")
    for row in limits:
        over = row["measured"] / row["limit"]
        assert row["share"] == pytest.approx(over if row["unit"] == "tokens/s" else 1 / over)
        assert row["share"] > 0
    names = {"decode1": "decode, 1", "decode16": "decode, 16", "prefill": "prefill, 128"}
    for name, of in names.items():
        shares = [row["share"] for row in limits if row["limit_of"] == of]
        figure = f"roofline.{name}_share"
        assert len(shares) == roofline.ROUNDS
        assert report["figures"][figure] == median(shares)
        assert report["spread"][figure] == [min(shares), max(shares)]
    assert len(report["figures"]) == len(names)


# What is counted.


def test_smollm2_is_counted(smollm2: Path) -> None:
    """30 layers of 576 by 576, 2 of 192, and 3 of 1,536; the embedding serves as head."""
    loaded = load_model(smollm2)
    work = Work.of(loaded, ModelRunner(loaded, EngineConfig()).shapes)
    assert work.num_weights == 30 * 576 * (2 * 576 + 2 * 192 + 3 * 1536)
    assert work.num_head == 49152 * 576
    assert work.widest == (1536, 576)
    assert work.weight_bytes == work.dtype.size * (work.num_weights + work.num_head)
    attended = 3 * 4 // 2  # of three tokens: 1 + 2 + 3
    own = 2 * (3 * work.num_weights + work.num_head)
    # A product with keys and one with values, by 9 heads of 64.
    assert work.prompt_ops(3) == own + attended * 30 * 9 * 2 * (64 + 64)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_is_read_and_the_embedding_is_not(tied: bool) -> None:
    loaded = tiny.make("llama", tie_word_embeddings=tied)
    work = Work.of(loaded, ModelRunner(loaded, EngineConfig()).shapes)
    body = 2 * (64 * (2 * 128 + 2 * 64) + 3 * 64 * 96)
    assert work.num_weights == body
    assert work.num_head == tiny.VOCAB * 64
    assert work.weight_bytes == 4 * (body + tiny.VOCAB * 64)


def test_windows_bound_what_is_attended() -> None:
    for num_tokens, window in ((5, None), (5, 3), (3, 3), (2, 3)):
        each = [min(i + 1, window or num_tokens) for i in range(num_tokens)]
        assert _num_attended(num_tokens, window) == sum(each)
    work = Work.of((loaded := tiny.make("gemma3_text")), ModelRunner(loaded, EngineConfig()).shapes)
    assert [window for window, _ in work.attention] == [80, None, 80, None]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_weights_in_few_bits_are_counted_one_by_one(bits: int) -> None:
    packed = nn.Linear(128, 64, bias=False).to_quantized(64, bits)
    mx.eval(packed.parameters())
    assert _num_weights(packed) == 128 * 64
    assert _num_inputs(packed) == 128


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_counted_whatever_they_are_called(name: str) -> None:
    layer = nn.Module()
    layer.self_attn = nn.Module()
    setattr(layer.self_attn, name, 14)
    assert _num_heads(layer) == 14


def test_heads_that_cannot_be_counted() -> None:
    layer = nn.Module()
    for part in (None, nn.Module()):
        layer.self_attn = part
        with pytest.raises(
            EdgeCortexError, match="how many heads Module has: expected a self_attn"
        ):
            _num_heads(layer)
    with pytest.raises(EdgeCortexError, match="with one of n_heads, num_heads"):
        _num_heads(nn.Module())
