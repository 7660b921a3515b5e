"""GGUF files imported: every number is where it belongs, and mlx-lm opens the folder as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, ReaderTensor, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm import load, stream_generate
from mlx_lm.utils import dequantize_model
from mlx_lm.utils import load_model as load_mlx_lm

from edgecortex import Engine, EngineConfig, SamplingParams, models
from edgecortex.errors import ModelError
from edgecortex.models.adapter import compute_dtype, load_model
from edgecortex.models.gguf_tensors import quantized
from tests.models import tiny_gguf

Q = GGMLQuantizationType
AFFINE = {Q.Q4_0: 4, Q.Q4_1: 4, Q.Q8_0: 8}
OTHERS = [Q.F32, Q.F16, Q.BF16, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K]
IDS = mx.array([[(7 * i) % 97 for i in range(40)]])


@pytest.fixture
def imported(home: Path, tmp_path: Path) -> Callable[..., tuple[Path, tiny_gguf.Weights]]:
    """Writes a tiny GGUF file and imports it: the folder, and the weights before conversion."""

    def run(*args: Any, **options: Any) -> tuple[Path, tiny_gguf.Weights]:
        weights = tiny_gguf.write(tmp_path / "tiny.gguf", *args, **options)
        return models.resolve(str(tmp_path / "tiny.gguf")), weights

    return run


# fp32 holds the product of 8 bits and an fp16 number: "equal" below is without a tolerance.
def dequantized(weight: mx.array, scales: mx.array, biases: mx.array, bits: int) -> np.ndarray:
    """What MLX makes of a quantized matrix when its scales are in fp32."""
    wide = (scales.astype(mx.float32), biases.astype(mx.float32))
    return np.array(mx.dequantize(weight, *wide, group_size=32, bits=bits))


@pytest.mark.parametrize("kind", AFFINE, ids=lambda kind: kind.name)
def test_affine_types_stay_as_they_are(imported: Any, kind: GGMLQuantizationType) -> None:
    folder, weights = imported("llama", kind)
    arrays = mx.load(str(folder / "model.safetensors"))
    for name, expected in weights.items():
        if expected.ndim == 1:
            continue
        parts = [
            arrays.pop(name.replace("weight", part)) for part in ("weight", "scales", "biases")
        ]
        assert [part.dtype for part in parts] == [mx.uint32, mx.float16, mx.float16]
        np.testing.assert_array_equal(dequantized(*parts, AFFINE[kind]), expected, err_msg=name)
    assert all("norm" in name for name in arrays)


def only_tensor(path: Path, kind: GGMLQuantizationType, stored: np.ndarray) -> ReaderTensor:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("matrix", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFReader(path).tensors[0]


@pytest.mark.parametrize("kind", AFFINE, ids=lambda kind: kind.name)
@given(
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    seed=st.integers(0, 1 << 32),
    scale=st.floats(-65504, 65504, width=16),
)
@settings(max_examples=40, deadline=None)
def test_any_block_is_exact_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    kind: GGMLQuantizationType,
    rows: int,
    groups: int,
    seed: int,
    scale: float,
) -> None:
    stored = tiny_gguf.blocks(kind, rows, 32 * groups, seed)
    stored[0, :2] = np.array([scale], np.float16).view(np.uint8)
    tensor = only_tensor(tmp_path_factory.mktemp("block") / "one.gguf", kind, stored)
    # The offset of the symmetric types is fp16 too: -8 or -128 times the scale.
    if abs(scale) * {Q.Q4_0: 8, Q.Q4_1: 1, Q.Q8_0: 128}[kind] > 65504:
        with pytest.raises(ModelError, match="matrix"):
            quantized(tensor)
        return
    parts = [mx.array(part) for part in quantized(tensor)]
    found = dequantized(*parts, AFFINE[kind])
    np.testing.assert_array_equal(found, dequantize(stored, kind))


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.name)
def test_other_types_are_dequantized_to_fp16(imported: Any, kind: GGMLQuantizationType) -> None:
    folder, weights = imported("qwen2", kind)
    arrays = mx.load(str(folder / "model.safetensors"))
    assert arrays.keys() == weights.keys()
    for name, expected in weights.items():
        assert arrays[name].dtype == mx.float16
        found = np.array(arrays[name])
        np.testing.assert_array_equal(found, expected.astype(np.float16), err_msg=name)
    assert "quantization" not in json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("value", [70_000.0, float("inf"), float("nan")])
def test_a_value_that_fp16_cannot_hold_is_refused(imported: Any, value: float) -> None:
    with pytest.raises(ModelError, match=r"norm\.weight: expected finite values"):
        imported(norm=value)


@pytest.mark.parametrize("kind", tiny_gguf.CONFIGS)
def test_logits_are_those_of_the_weights_before_conversion(imported: Any, kind: str) -> None:
    folder, weights = imported(kind)
    found = load_mlx_lm(folder)[0]
    found.set_dtype(mx.float32)
    expected = tiny_gguf.model_of(kind, weights)(IDS)
    assert expected.std().item() > 0.1
    # The same numbers in the same classes, so nothing is left to rounding.
    np.testing.assert_array_equal(np.array(found(IDS)), np.array(expected))


@pytest.mark.parametrize("kind", tiny_gguf.CONFIGS)
def test_logits_through_the_adapter(imported: Any, kind: str) -> None:
    folder, weights = imported(kind, Q.Q8_0)
    expected = np.array(tiny_gguf.model_of(kind, weights)(IDS)[0])
    found = np.array(load_model(folder).reference(IDS[0].tolist()))
    # fp32 rounding in other orders; logits are of the size of 1 to 100.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_folder_opens_in_plain_mlx_lm_and_says_the_same(smollm2: Path) -> None:
    question, num_tokens = "Why is the sky blue?", 24
    sampling = SamplingParams(max_tokens=num_tokens)
    with Engine.load(str(smollm2), config=EngineConfig(kv_format="fp")) as engine:
        answer = engine.agent().chat(question, sampling)
        answer.text()
    model, tokenizer = load(str(smollm2))[:2]
    if dtype := compute_dtype():  # mlx-lm's quantized matrix products are slow on a CPU
        model.set_dtype(dtype)
        model = dequantize_model(model)
    message = {"role": "user", "content": question}
    prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True)
    plain = [step.token for step in stream_generate(model, tokenizer, prompt, num_tokens)]
    assert len(plain) == num_tokens
    assert answer.token_ids == plain


def test_a_file_is_imported_once(imported: Any, tmp_path: Path) -> None:
    folder, _ = imported()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert models.resolve(str(tmp_path / "tiny.gguf")) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
