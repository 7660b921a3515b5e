"""Each model gets the KV format that measured best on it."""

from pathlib import Path

import pytest

from edgecortex import Engine, EngineConfig, gate
from edgecortex.gate import CANDIDATES, FALLBACK, Verdict
from edgecortex.kv.format import FORMATS
from edgecortex.models.adapter import LoadedModel, load_model


@pytest.fixture(scope="module")
def models(smollm2: Path, gemma3: Path) -> dict[str, LoadedModel]:
    return {"smollm2": load_model(smollm2), "gemma3": load_model(gemma3)}


@pytest.mark.parametrize(("name", "best"), [("smollm2", "kv4"), ("gemma3", "kv4u")])
def test_the_best_of_each_model(
    name: str, best: str, models: dict[str, LoadedModel], home: Path
) -> None:
    verdict = gate.choose(models[name])
    assert verdict.kv_format == best
    assert verdict.kl[best] < 0.0068 < max(verdict.kl.values())
    assert verdict.notice == ""
    assert FORMATS[best].bits == 4


def test_a_verdict_is_remembered(
    models: dict[str, LoadedModel], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gate.choose(models["smollm2"])
    monkeypatch.setattr(gate, "measure", lambda model: pytest.fail("measured again"))
    assert gate.choose(models["smollm2"]) == first
    (home / "state" / "kv-formats.json").write_text("[")
    monkeypatch.setattr(gate, "measure", lambda model: dict.fromkeys(CANDIDATES, 0.001))
    assert gate.choose(models["smollm2"]).kl != first.kl


def test_a_model_that_4_bits_spoil_gets_8(
    smollm2: Path, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gate, "measure", lambda model: dict.fromkeys(CANDIDATES, 0.4))
    with Engine.load(str(smollm2), config=EngineConfig(store_path=tmp_path)) as engine:
        assert engine.config.kv_format == FALLBACK
        assert "KL 0.4" in engine.notice
        assert engine.core.pool.format.bits == 8
    with Engine.load(str(smollm2), config=EngineConfig(kv_format="kv4", use_store=False)) as engine:
        assert (engine.config.kv_format, engine.notice) == ("kv4", "")
    assert Verdict("kv4", {"kv4": 0.001}).notice == ""
