"""The bytes of one file: what they are, and that damage to any of them is noticed."""

from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgecortex.store.entry import Chain, DamagedError, Entry, decode, encode, thought, window_of
from tests.store.blocks import CHAIN, arrays_of, check_equal, tokens

GOLDEN = Path(__file__).parent / "golden" / "9674bf552914b4d2f1f791a56445edf0.block.safetensors"
GOLDEN_CHAIN = Chain.of("golden model", {"num_sinks": 4, "block": 8, "bits": 4})
GOLDEN_IDS = range(100, 112)
GOLDEN_ARRAYS: dict[str, np.ndarray] = {
    "0.k0": np.arange(12, dtype=np.uint32).reshape(2, 1, 6) * 0x01010101,
    "0.k1": np.arange(6, dtype=np.float16).reshape(2, 3) / 4,
    "0.v0": np.arange(8, dtype=np.uint16).reshape(2, 4),
    "0.row_k": np.arange(16, dtype=np.float32).reshape(2, 1, 4, 2) / 8 - 1,
    "0.row_v": np.arange(4, dtype=np.int32).reshape(1, 1, 4, 1),
}
BLOCK = CHAIN.blocks(tokens(1, 12))[0]
DATA = bytes(encode(BLOCK, arrays_of(BLOCK)))
KINDS = [BLOCK, window_of(BLOCK), CHAIN.tail(BLOCK.id, [1, 2], 68), thought("t" * 8, CHAIN.root)]


def test_a_file_of_this_format_decodes_to_what_was_stored() -> None:
    (expected,) = GOLDEN_CHAIN.blocks(GOLDEN_IDS)
    assert GOLDEN.name == expected.file_name
    entry, arrays = decode(GOLDEN.read_bytes())
    assert entry == expected
    check_equal(arrays, GOLDEN_ARRAYS)


def test_a_file_of_this_format_opens_with_plain_safetensors() -> None:
    ids = np.array(GOLDEN_IDS, np.int32)
    check_equal(safetensors.numpy.load_file(GOLDEN), {"token_ids": ids, **GOLDEN_ARRAYS})
    with safetensors.safe_open(GOLDEN, "np") as file:
        metadata = file.metadata()
    assert metadata.pop("checksum") != "0" * 32
    (block,) = GOLDEN_CHAIN.blocks(GOLDEN_IDS)
    assert metadata == {
        "format": "edgecortex-kv",
        "version": "1",
        "kind": "block",
        "id": block.id,
        "parent": GOLDEN_CHAIN.root,
        "root": GOLDEN_CHAIN.root,
    }


DTYPES = st.sampled_from([np.float32, np.float16, np.uint32, np.int32, np.uint16])
ARRAYS = DTYPES.flatmap(lambda t: hnp.arrays(t, hnp.array_shapes(min_side=0, max_side=4)))


@given(st.dictionaries(st.from_regex(r"[0-9]\.[kv][0-9]", fullmatch=True), ARRAYS))
@settings(deadline=None)
def test_whatever_is_encoded_decodes_to_the_same(arrays: dict[str, np.ndarray]) -> None:
    for entry in (BLOCK, window_of(BLOCK), CHAIN.tail(BLOCK.id, [1, 2], 68)):
        found, views = decode(encode(entry, arrays))
        assert found == entry
        check_equal(views, arrays)


@pytest.mark.parametrize("entry", KINDS, ids=lambda entry: entry.kind)
def test_any_flipped_bit_is_damage(entry: Entry) -> None:
    whole = bytes(encode(entry, arrays_of(BLOCK)))
    assert decode(whole)[0] == entry
    for i in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[i] ^= 1 << bit
            with pytest.raises(DamagedError):
                decode(data)


@pytest.mark.parametrize("entry", KINDS, ids=lambda entry: entry.kind)
def test_any_truncation_is_damage(entry: Entry) -> None:
    whole = bytes(encode(entry, arrays_of(BLOCK)))
    for length in range(len(whole)):
        with pytest.raises(DamagedError):
            decode(whole[:length])


@given(st.binary(min_size=1, max_size=100))
def test_anything_appended_is_damage(more: bytes) -> None:
    with pytest.raises(DamagedError):
        decode(DATA + more)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_damage(data: bytes) -> None:
    with pytest.raises(DamagedError):
        decode(data)


@given(st.data())
@settings(deadline=None)
def test_an_overwritten_piece_is_damage(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(DATA) - 1))
    piece = data.draw(st.binary(min_size=1, max_size=len(DATA) - start))
    found = DATA[:start] + piece + DATA[start + len(piece) :]
    if found != DATA:
        with pytest.raises(DamagedError):
            decode(found)
