"""The catalogue: every entry is complete and pinned, and what fits follows from its numbers."""

import re

import pytest

from edgecortex.errors import ConfigError, ModelError
from edgecortex.models import resolve
from edgecortex.models.catalogue import (
    COMFORT,
    CONTEXT,
    LIMIT,
    Entry,
    catalogue,
    larger,
    parse,
    recommended,
    runnable,
)
from edgecortex.models.machine import Machine, this_machine

NAMES = [
    "smollm2-135m",
    "gemma3-270m",
    "qwen2.5-0.5b",
    "llama3.1-8b",
    "gemma3-12b",
    "deepseek-coder-v2-lite",
]
SIZES = {
    "description": "A model",
    "chat": True,
    "num_parameters": 1000,
    "weight_bytes": 500,
    "num_layers": 4,
    "num_kv_heads": 2,
    "key_dim": 8,
    "value_dim": 4,
    "context_length": 100,
}
WHEEL = {"package": "a", "version": "1", "sha256": "0", "num_bytes": 7, "member": "a/b.gguf"}


@pytest.fixture(params=NAMES)
def entry(request: pytest.FixtureRequest) -> Entry:
    return catalogue()[request.param]


def made(**values: object) -> Entry:
    return parse({"it": {**SIZES, "repository": "a/b", **values}})["it"]


def test_the_default_is_first_and_all_are_there() -> None:
    assert list(catalogue()) == NAMES


def test_an_entry_is_plausible(entry: Entry) -> None:
    assert entry.description
    assert 3 < 8 * entry.weight_bytes / entry.num_parameters < 17
    assert entry.num_layers > entry.num_sliding_layers >= 0
    assert min(entry.num_kv_heads, entry.key_dim, entry.value_dim) >= 1
    assert entry.context_length >= CONTEXT
    assert bool(entry.num_sliding_layers) == bool(entry.sliding_window)


def test_a_source_is_pinned_or_a_repository(entry: Entry) -> None:
    for wheel in entry.wheels:
        assert re.fullmatch(r"\d+(\.\d+)+", wheel.version)
        assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)
        assert wheel.num_bytes > 1_000_000
        assert wheel.member.startswith(wheel.package.replace("-", "_") + "/")
    if entry.repository:
        assert re.fullmatch(r"mlx-community/[\w.-]+", entry.repository)
    assert bool(entry.wheels) != bool(entry.repository)


def test_wheels_are_all_different() -> None:
    hashes = [wheel.sha256 for entry in catalogue().values() for wheel in entry.wheels]
    assert len(hashes) == len(set(hashes)) == 5


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"it: unknown keys \['num_layer'\], expected some of"):
        made(num_layer=4)
    with pytest.raises(ConfigError, match=r"it\.wheels: unknown keys \['md5'\]"):
        made(repository=None, wheels=[{**WHEEL, "md5": "0"}])


@pytest.mark.parametrize("sources", [{"repository": None}, {"wheels": [WHEEL]}])
def test_one_source_is_expected(sources: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="it: expected either wheels or a repository"):
        made(**sources)


def test_a_missing_key_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"it: missing keys \['chat', 'description'\]"):
        parse({"it": {key: SIZES[key] for key in SIZES.keys() - {"chat", "description"}}})


def test_memory_is_weights_and_context() -> None:
    per_token = 4 * 2 * (8 + 4) * 4.5 / 8
    assert made().kv_bytes(10) == int(10 * per_token)
    assert made().kv_bytes(10_000) == int(100 * per_token)
    sliding = made(num_sliding_layers=3, sliding_window=20)
    assert sliding.kv_bytes(100) == int((100 + 3 * 20) * per_token / 4)
    assert made().memory_bytes(10, Machine(1, fp32=False)) == 500 + int(10 * per_token)
    assert made().memory_bytes(10, Machine(1, fp32=True)) == 4000 + int(10 * per_token)


@pytest.mark.parametrize("fp32", [True, False])
def test_what_runs_and_what_is_recommended(fp32: bool) -> None:
    for entry in catalogue().values():
        need = entry.memory_bytes(CONTEXT, Machine(0, fp32))
        limit, comfort = (Machine(int(need / share) + 2, fp32) for share in (LIMIT, COMFORT))
        assert entry in runnable(limit)
        assert entry not in runnable(Machine(int(need / LIMIT) - 2, fp32))
        chosen = recommended(comfort)
        assert (chosen == entry) if entry.chat else (chosen != entry)
        needs = [each.memory_bytes(CONTEXT, limit) for each in runnable(limit)]
        assert needs == sorted(needs)


def test_nothing_fits_a_tiny_machine() -> None:
    tiny = Machine(1_000_000, fp32=False)
    assert (runnable(tiny), recommended(tiny), larger(NAMES[0], tiny)) == ([], None, [])


def test_larger_ones_are_chat_models_that_fit() -> None:
    names = [entry.name for entry in larger("smollm2-135m", Machine(8_000_000_000, fp32=False))]
    assert names == ["qwen2.5-0.5b", "llama3.1-8b"]


def test_this_machine_has_memory() -> None:
    assert this_machine().memory_bytes > 500_000_000


@pytest.mark.parametrize("name", ["smollm3", "smollm2", "qwen2.5 0.5b", "a/b/c", "no-such-folder/"])
def test_an_unknown_name_lists_those_there_are(home: object, name: str) -> None:
    with pytest.raises(ModelError) as refused:
        resolve(name)
    assert f"unknown model {name!r}: expected one of {', '.join(NAMES)}" in str(refused.value)
