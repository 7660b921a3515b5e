"""The router on hostile text: however it is cut, whatever is nested, open, empty or too much."""

import itertools
import pickle
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecortex.errors import ConfigError
from edgecortex.warp.router import KINDS, CortexRouter, RouterLimits, Trigger

Found = list[tuple[str, str]]


def routed(router: CortexRouter, pieces: Iterable[str]) -> Found:
    """What a router takes up of a text that comes in these pieces and ends."""
    found = [trigger for piece in pieces for trigger in router.feed(piece)]
    return [(trigger.kind, trigger.text) for trigger in found + router.finish()]


def found_in(text: str, limits: RouterLimits | None = None, **more: Sequence[str]) -> Found:
    """What is taken up of a text that comes letter by letter."""
    return routed(CortexRouter(limits=limits, **more), text)


def reasons(router: CortexRouter) -> list[str]:
    return [reason for _, reason in router.ignored]


# Cuts.

FRAGMENTS = [
    *(f"[{kind}: " for kind in KINDS),
    *(f"[{kind}]" for kind in KINDS),
    *"[]:ab \n\t\r",
    *("[ TASK :", "[TASK", "[NOPE: ", "[task: ", "\n\n", "\n \t\n", "\r\n", "]]", "[[", "[]"),
    *("one two", "[TASK: one two]", " " * 30, "long " * 9, "ß\u2028日\x00"),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join)
limits = st.builds(
    RouterLimits,
    max_tasks=st.integers(0, 6),
    max_depth=st.integers(0, 2),
    min_gap_chars=st.integers(0, 30),
    max_chars=st.integers(1, 60),
)


@settings(max_examples=500)
@given(texts, limits, st.lists(st.integers(0, 300)))
def test_cuts_make_no_difference(text: str, limits: RouterLimits, places: list[int]) -> None:
    bounds = sorted({0, len(text), *(min(place, len(text)) for place in places)})
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    whole, letters, parts = (CortexRouter(limits=limits) for _ in range(3))
    expected = routed(whole, [text])
    assert routed(letters, text) == routed(parts, pieces) == expected
    assert letters.ignored == parts.ignored == whole.ignored


@settings(max_examples=300)
@given(texts, limits)
def test_what_is_found_was_said_and_obeys_the_limits(text: str, limits: RouterLimits) -> None:
    router = CortexRouter(limits=limits)
    found = routed(router, [text])
    assert len(found) <= (limits.max_tasks if limits.max_depth else 0)
    assert len({text.casefold().rstrip(" .!?,;:") for _, text in found}) == len(found)
    flat = " ".join(text.split())
    for kind, said in found:
        assert kind in KINDS
        assert said in flat
        assert 0 < len(said) <= limits.max_chars


@given(texts)
def test_a_text_does_not_lean_on_the_one_before(text: str) -> None:
    router, fresh = CortexRouter(), CortexRouter()
    router.feed("[TASK: never closed, and [CHECK")
    router.finish()
    router.reset()
    assert routed(router, [text]) == routed(fresh, [text])


# The forms.


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_both_forms(kind: str) -> None:
    assert found_in(f"So. [{kind}: count the cats] Well.") == [(kind, "count the cats")]
    assert found_in(f"So. [{kind}] count the cats\nWell.") == [(kind, "count the cats")]
    assert found_in(f"So.\nTwo cats. [{kind}]\nWell.") == [(kind, "Two cats.")]
    assert found_in(f"[{kind}]: at the end") == [(kind, "at the end")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[TASK: sort a[0] and b[i[1]]]", ["sort a[0] and b[i[1]]"]),
        ("[TASK: see [CHECK: this] too]", ["see [CHECK: this] too"]),
        ("[TASK: open [TASK: inner] end", ["inner"]),
        ("[TASK: one][CHECK: two][TASK:three]", ["one", "two", "three"]),
        ("[[TASK: in brackets]]", ["in brackets"]),
        ("x] ] [TASK: after] ]", ["after"]),
        ("[\tTASK \t: \t spaced   out\r\nover\ttwo lines ]", ["spaced out over two lines"]),
    ],
)
def test_nesting(text: str, expected: list[str]) -> None:
    assert [said for _, said in found_in(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[TASK: never closed",
        "[TASK: never [closed]",
        "[TASK:]",
        "[TASK: \t\n ]",
        "[CHECK]",
        " \t[CHECK] :\n",
        "[TASK: a blank\n\nline]",
        "[TASK: a blank\n \t\r\nline]",
        "[TASK: a blank line at the end\n\n",
        "[task: small letters]",
        "[TASKS: another word]",
        "[TASK list: spaces]",
        "[TAS\nK: broken]",
        "[\nTASK: broken]",
        "TASK: no bracket]",
        "[" + " " * 64 + "TASK: far from its bracket]",
    ],
)
def test_no_triggers(text: str) -> None:
    assert found_in(text) == []


def test_one_line_break_is_none_too_many() -> None:
    assert found_in("[TASK: two\nlines\n]") == [("TASK", "two lines")]


def test_what_comes_after_an_open_one_is_found_all_the_same() -> None:
    text = "[TASK: never closed " + "x" * 400 + " [CHECK: this]\n\n[TASK: open\n\n[CODE: that]"
    assert found_in(text) == [("CHECK", "this"), ("CODE", "that")]


def test_a_task_is_complete_with_its_bracket_and_a_bare_one_with_its_line() -> None:
    router = CortexRouter()
    assert router.feed("[TASK: now") == []
    assert router.feed("]") == [Trigger("TASK", "now")]
    assert router.feed("[SEARCH] later") == []
    assert router.feed("\n") == [Trigger("SEARCH", "later")]
    assert router.feed("[CHECK] at the end") == []
    assert router.finish() == [Trigger("CHECK", "at the end")]
    assert router.finish() == []


def test_configured_kinds_take_the_places_of_the_usual_ones() -> None:
    text = "[ASK_bob-2: who]\n[TASK: what]\n[.*: which]"
    assert found_in(text, kinds=("ASK_bob-2",)) == [("ASK_bob-2", "who")]
    assert found_in(text, kinds=()) == []
    for kind in ("", "TWO WORDS", "A]", "Ä", "A" * 33):
        with pytest.raises(ConfigError, match="must be letters, digits, _ and -"):
            CortexRouter(("TASK", kind))


# Limits.


def test_no_more_than_so_many() -> None:
    router = CortexRouter(limits=RouterLimits(max_tasks=2))
    assert routed(router, "[TASK: a][TASK: b][TASK: c]") == [("TASK", "a"), ("TASK", "b")]
    assert router.ignored == [(Trigger("TASK", "c"), "too many")]
    assert routed(router, "[TASK: d]") == []
    router.reset()
    assert router.ignored == []
    assert routed(router, "[TASK: a][TASK: d]") == [("TASK", "a"), ("TASK", "d")]
    assert found_in("[TASK: a]", RouterLimits(max_tasks=0)) == []


@pytest.mark.parametrize(("gap", "taken"), [(9, ["a"]), (10, ["a", "b"])])
def test_so_many_characters_apart(gap: int, taken: list[str]) -> None:
    router = CortexRouter(limits=RouterLimits(min_gap_chars=10))
    text = "[TASK: a]" + "." * gap + "[TASK: b]"
    assert [said for _, said in routed(router, text)] == taken
    assert reasons(router) == ["too often"] * (2 - len(taken))
    assert routed(router, "[TASK: another text]") == [("TASK", "another text")]


@pytest.mark.parametrize("form", ["[TASK: {}]", "[SEARCH] {}\n", "{} [CHECK]\n"])
def test_no_longer_than_so(form: str) -> None:
    limits = RouterLimits(max_chars=12)
    for length, count in ((11, 1), (12, 1), (13, 0), (1000, 0)):
        text = form.replace(" ", "").format("x" * length)
        assert len(found_in(text, limits)) == count


def test_the_same_again_is_taken_up_once() -> None:
    router = CortexRouter()
    text = "[TASK: Count them.]\n[CHECK:  count   THEM ]\n[CODE] count them!?\n[TASK: count then]"
    assert routed(router, text) == [("TASK", "Count them."), ("TASK", "count then")]
    assert reasons(router) == ["duplicate", "duplicate"]
    assert routed(router, "[TASK: count them]") == []


def test_children_are_deeper_and_share_all_limits() -> None:
    router = CortexRouter(limits=RouterLimits(max_tasks=3, max_depth=2))
    child = router.child()
    grandchild = child.child()
    assert routed(router, "[TASK: a]") == [("TASK", "a")]
    assert routed(grandchild, "[TASK: b]") == []
    assert routed(child, "[TASK: a][TASK: b][TASK: c]") == [("TASK", "b"), ("TASK", "c")]
    assert routed(router, "[TASK: d]") == []
    assert reasons(router) == reasons(child) == ["too deep", "duplicate", "too many"]
    assert routed(CortexRouter(limits=RouterLimits(max_depth=1)).child(), "[TASK: a]") == []
    assert found_in("[TASK: a]", RouterLimits(max_depth=0)) == []


def test_a_child_listens_to_a_text_of_its_own() -> None:
    router = CortexRouter(limits=RouterLimits(max_depth=2))
    child = router.child()
    assert router.feed("[TASK: of the main") == child.feed("[TASK: of the side") == []
    assert child.feed("]") == [Trigger("TASK", "of the side")]
    assert router.feed("]") == [Trigger("TASK", "of the main")]


@pytest.mark.parametrize(
    "wrong", [{"max_tasks": -1}, {"max_depth": -1}, {"min_gap_chars": -1}, {"max_chars": 0}]
)
def test_limits_out_of_range(wrong: dict[str, int]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=f"{name} must be at least {value + 1}, got {value}"):
        RouterLimits(**wrong)


# Floods.

MAX_BYTES = 16_000  # of a router that has just been flooded, pickled


@pytest.mark.parametrize(
    ("flood", "num_accepted", "num_ignored"),
    [
        ("[TASK: number {}] ", 8, 100),
        ("[TASK: the same] ", 1, 100),
        ("[CHECK] line {}\n", 8, 100),
        ("[TASK: open {} ", 0, 0),
        ("[TASK: ", 0, 0),
        ("[", 0, 0),
        ("[[[TASK", 0, 0),
        ("[TASK: {} \n", 0, 0),
        ("[SEARCH] no line end {} ", 0, 0),
        ("no bracket and no line end ", 0, 0),
    ],
)
def test_a_flood_is_held_back_in_little_memory(
    flood: str, num_accepted: int, num_ignored: int
) -> None:
    router, most = CortexRouter(), 0
    num_found = 0
    for i in range(10_000):
        num_found += len(router.feed(flood.format(i)))
        if i % 500 == 0:
            most = max(most, len(pickle.dumps(router)))
    assert len(pickle.dumps(router)) <= MAX_BYTES
    assert most <= MAX_BYTES
    assert (num_found, len(router.ignored)) == (num_accepted, num_ignored)
    assert set(reasons(router)) <= {"too many", "duplicate"}
    router.finish()
    router.reset()
    assert routed(router, "[TASK: calm again]") == [("TASK", "calm again")]


def test_a_flood_in_one_piece() -> None:
    router = CortexRouter(limits=RouterLimits(max_tasks=10_000))
    text = "".join(f"[TASK: number {i}]\n" for i in range(10_000))
    assert len(router.feed(text)) == 10_000
    router.reset()
    assert routed(router, ["[TASK: " * 10_000]) == []
