"""Token ids of a conversation: what stays, what is dropped, and what an error leaves behind."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecortex.conversation import Conversation, Message
from edgecortex.errors import PromptError

START = 1
GENERATED = 1_000_000
"""Generated ids lie from here on: no encoding of text makes them."""


class Letters:
    """One token for each character; `strip` rewrites earlier turns, as some templates do."""

    def __init__(self, strip: bool = False) -> None:
        self.strip = strip

    def encode(self, text: str, *, first: bool) -> list[int]:
        return [START] * first + [ord(letter) for letter in text]

    def render(self, messages: list[Message]) -> str:
        contents = (m["content"].strip() if self.strip else m["content"] for m in messages)
        turns = (f"<{m['role'][0]}>{c}</>" for m, c in zip(messages, contents, strict=True))
        return "".join(turns) + "<a>"


TEXTS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=30)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)


def _answer(text: str) -> list[int]:
    """Ids of an answer cut as no tokenizer would cut its text."""
    return [GENERATED + len(text)]


@given(turns=TURNS, system=st.none() | TEXTS)
def test_ids_only_ever_grow_while_there_is_room(
    turns: list[tuple[str, str]], system: str | None
) -> None:
    talk = Conversation(Letters(), system)
    for question, answer in turns:
        before = list(talk.token_ids)
        ids, dropped = talk.ask(question, 10_000, 10)
        assert dropped == 0
        assert ids[: len(before)] == before
        assert len(ids) > len(before)
        talk.answered(answer, _answer(answer))
        assert talk.token_ids == ids + _answer(answer)
    assert [m["content"] for m in talk.messages[-2:]] == list(turns[-1])


@given(turns=TURNS, system=st.none() | TEXTS, room=st.integers(20, 200))
def test_dropping_keeps_the_system_prompt_and_the_new_turn(
    turns: list[tuple[str, str]], system: str | None, room: int
) -> None:
    talk, reserve = Conversation(Letters(), system), 7
    for question, answer in turns:
        before = copy.deepcopy(talk)
        try:
            ids, dropped = talk.ask(question, room + reserve, reserve)
        except PromptError:
            assert talk.__dict__ | {"tokenizer": None} == before.__dict__ | {"tokenizer": None}
            alone = Conversation(Letters(), system)
            with pytest.raises(PromptError):
                alone.ask(question, room + reserve, reserve)
            continue
        assert len(ids) <= room
        assert ids == talk.token_ids
        assert dropped == len(before.messages) + 1 - len(talk.messages)
        assert talk.messages[: bool(system)] == before.messages[: bool(system)]
        turns_left = talk.messages[bool(system) :]
        assert (
            turns_left
            == [*before.messages, {"role": "user", "content": question}][-len(turns_left) :]
        )
        assert [m["role"] for m in turns_left] == (["user", "assistant"] * 20)[: len(turns_left)]
        if dropped and len(turns_left) > 1:
            assert len(ids) <= room // 2
        talk.answered(answer, _answer(answer))


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_empty_turn_changes_nothing(text: str) -> None:
    talk = Conversation(Letters(), "be brief")
    talk.ask("one", 1000, 10)
    talk.answered("two", _answer("two"))
    before = copy.deepcopy(talk.__dict__ | {"tokenizer": None})
    with pytest.raises(PromptError, match="empty"):
        talk.ask(text, 1000, 10)
    assert talk.__dict__ | {"tokenizer": None} == before


def test_a_turn_too_long_by_itself_says_how_long_it_may_be() -> None:
    talk = Conversation(Letters())
    with pytest.raises(PromptError, match=r"at most 80 tokens \(100 of context less 20.*got 97"):
        talk.ask("x" * 87, 100, 20)
    assert (talk.messages, talk.token_ids) == ([], [])


def test_a_template_that_rewrites_old_turns_makes_the_text_anew() -> None:
    letters = Letters(strip=True)
    talk = Conversation(letters)
    talk.ask("one", 1000, 10)
    talk.answered("two ", _answer("two "))
    ids, _ = talk.ask("three", 1000, 10)
    assert ids == letters.encode(letters.render(talk.messages), first=True)


def test_reset_keeps_the_system_prompt() -> None:
    talk = Conversation(Letters(), "be brief")
    fresh, _ = Conversation(Letters(), "be brief").ask("one", 1000, 10)
    talk.ask("zero", 1000, 10)
    talk.answered("nought", _answer("nought"))
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    assert talk.ask("one", 1000, 10) == (fresh, 0)


def test_the_start_token_comes_once() -> None:
    talk = Conversation(Letters())
    for turn in range(3):
        ids, _ = talk.ask(f"turn {turn}", 1000, 10)
        assert ids.count(START) == 1
        talk.answered("yes", _answer("yes"))


def test_a_question_without_an_answer_is_withdrawn() -> None:
    talk = Conversation(Letters(), "be brief")
    talk.ask("one", 1000, 10)
    talk.answered("two", _answer("two"))
    before = talk.messages, talk.token_ids
    for room in (1000, 40):  # in 40 the first turn is dropped
        talk.ask("three", room, 10)
        talk.withdraw()
        talk.withdraw()
        assert (talk.messages, talk.token_ids) == before
    assert talk.ask("three", 1000, 10)[0][: len(before[1])] == before[1]


def test_an_answer_cut_at_a_stop_is_tokenized_anew() -> None:
    letters = Letters()
    talk = Conversation(letters)
    talk.ask("one", 1000, 10)
    talk.answered("two", _answer("two, stop"), cut=True)
    ids, _ = talk.ask("three", 1000, 10)
    assert ids == letters.encode(letters.render(talk.messages), first=True)


def test_a_copy_goes_its_own_way() -> None:
    talk = Conversation(Letters(), "be brief")
    talk.ask("one", 1000, 10)
    talk.answered("two", _answer("two"))
    before = copy.deepcopy(talk.messages)
    twin = talk.copy()
    assert twin.ask("three", 1000, 10) == talk.copy().ask("three", 1000, 10)
    twin.answered("four", _answer("four"))
    twin.messages[0]["content"] = "be loud"
    assert talk.messages == before
