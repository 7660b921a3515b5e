"""The benchmarks of landmarks and of injected thoughts, on a tiny model."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgecortex import EngineConfig, gate
from edgecortex.bench import injection, synapse
from edgecortex.bench.text import english_once
from tests import scripted

TEXT = re.sub(r"[^\n -~]", "", english_once())


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Measures on a model with a token for each letter, and reports."""

    def measure(module: ModuleType, **sizes: int) -> Any:
        monkeypatch.setattr(module, "resolve", Path)
        monkeypatch.setattr(gate, "resolved", lambda model, config: (EngineConfig("kv4"), ""))
        monkeypatch.setattr(module, "load_model", lambda path: scripted.model())
        return module.measure(model="m", text=TEXT, progress=lambda line: None, **sizes)

    return measure


def test_landmarks_are_held_against_all_tokens_and_the_newest(measured) -> None:
    report = measured(synapse, contexts=8, tokens=300, kept=48)
    rows = {row["rule"]: row for row in report["rows"]}
    assert rows["full"]["gap_closed"] == pytest.approx(1)
    assert rows["sinks+recent"]["gap_closed"] == 0
    figure = report["figures"]["synapse.gap_closed"]
    assert figure == rows["matched"]["gap_closed"]
    low, high = report["spread"]["synapse.gap_closed"]
    assert low <= figure <= high
    assert low < high


def test_few_contexts_have_no_spread(measured) -> None:
    assert measured(synapse, contexts=2, tokens=200, kept=48)["spread"] == {}


def test_ways_to_tell_a_fact_are_held_against_pasting_it(measured) -> None:
    report = measured(injection, contexts=8)
    ways = {row["way"]: row for row in report["rows"] if "way" in row}
    assert ways["pasted"]["effect_share"] == pytest.approx(1)
    assert ways["nothing"]["effect"] == ways["nothing"]["unrelated_kl"] == 0
    figures, spread = report["figures"], report["spread"]
    assert figures["injection.effect_share"] == ways["forward"]["effect_share"]
    assert 0 <= figures["gate.auc"] <= 1
    assert set(spread) == set(figures)
    assert all(low <= figures[name] <= high for name, (low, high) in spread.items())
