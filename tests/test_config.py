"""Settings are checked when they are made."""

import dataclasses
from typing import Any

import pytest

from edgecortex import EngineConfig, SamplingParams
from edgecortex.errors import ConfigError, EdgeCortexError


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"seed": -1},
        {"seed": 1 << 32},
        {"stop": ("",)},
    ],
)
def test_sampling_out_of_range(values: dict[str, Any]) -> None:
    ((name, value),) = values.items()
    with pytest.raises(ConfigError) as error:
        SamplingParams(**values)
    assert str(error.value).startswith(f"{name} must be ")
    assert str(error.value).endswith(f", got {value!r}")


@pytest.mark.parametrize(
    "values",
    [
        {"kv_format": "kv5"},
        {"kv_budget_bytes": 0},
        {"context_length": 15},
        {"prefill_chunk": 0},
        {"max_batch": 0},
        {"max_gap": 1.0},
    ],
)
def test_engine_out_of_range(values: dict[str, Any]) -> None:
    ((name, _),) = values.items()
    with pytest.raises(ConfigError, match=f"^{name} must be "):
        EngineConfig(**values)


def test_an_unknown_format_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"'kv4'.*'fp'.*got 'kv5'"):
        EngineConfig(kv_format="kv5")


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize("config", [SamplingParams(), EngineConfig()])
def test_settings_do_not_change(config: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1


def test_a_config_error_is_both_ours_and_a_value_error() -> None:
    assert issubclass(ConfigError, EdgeCortexError)
    assert issubclass(ConfigError, ValueError)
