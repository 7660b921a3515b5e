"""Councils' files: every mistake is named, with its place."""

import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecortex import council
from edgecortex.council import STREAM, TOP, Council, Seat
from edgecortex.errors import ConfigError
from edgecortex.warp.gate import THRESHOLD


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "council.toml"


def loaded(path: Path, text: str) -> Council:
    path.write_text(text, "utf-8")
    return council.load(path)


def test_the_documented_example_is_one(path: Path) -> None:
    assert council.__doc__ is not None
    example = "\n".join(re.findall(r"^    .*$", council.__doc__, re.MULTILINE))
    assert loaded(path, textwrap.dedent(example)) == Council(
        question="Should we move the launch to May?",
        seats=(
            Seat(task="List what has to be ready before a launch."),
            Seat(role="You are a sceptic: say what is doubtful."),
        ),
        threshold=THRESHOLD,
    )


def test_all_that_may_stand_in_one(path: Path) -> None:
    text = """
        question = "Why?"
        system = "Be brief."
        threshold = -1
        landmarks = 16
        mode = "graft"
        [[stream]]
        task = "Find it."
        role = "A finder"
        kind = "SEARCH"
        mode = "forward"
        [[stream]]
        role = "Another"
    """
    assert loaded(path, text) == Council(
        "Why?",
        (Seat("Find it.", "A finder", "SEARCH", "forward"), Seat(role="Another")),
        system="Be brief.",
        threshold=-1,
        landmarks=16,
        mode="graft",
    )


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_an_empty_file_leaves_all_to_the_options(path: Path, text: str) -> None:
    assert loaded(path, text) == Council()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # The council itself.
        ('qestion = "?"', "the council: unknown key 'qestion', expected some of question, system"),
        ("question = 3", "the council: question must be str, got 3"),
        ('question = " "', "expected text in `question`, got none"),
        ("threshold = true", "the council: threshold must be float or int, got True"),
        ('threshold = "0.5"', "the council: threshold must be float or int, got '0.5'"),
        ("threshold = 1.01", "threshold must be between -1 and 1, got 1.01"),
        ("threshold = nan", "threshold must be between -1 and 1, got nan"),
        ("landmarks = 64.0", "the council: landmarks must be int, got 64.0"),
        ("landmarks = true", "the council: landmarks must be int, got True"),
        ("landmarks = 15", "landmarks: num_landmarks must be at least 16, got 15"),
        ("landmarks = 0", "landmarks: num_landmarks must be at least 16, got 0"),
        ('mode = "paste"', "mode must be forward or graft, got 'paste'"),
        ('mode = ""', "mode must be forward or graft, got ''"),
        ("system = 2026-01-01", "the council: system must be str, got datetime.date"),
        # Its streams.
        ('stream = "one"', "the council: stream must be list, got 'one'"),
        ('[stream]\ntask = "t"', "the council: stream must be list, got {'task': 't'}"),
        ("stream = [1]", "stream 1: expected a table, got 1"),
        (
            '[[stream]]\ntask = "t"\n[[stream]]',
            "stream 2: expected a `task` or a `role`, got neith",
        ),
        ('[[stream]]\ntask = " "\nrole = "\\n"', "stream 1: expected a `task` or a `role`, got"),
        ('[[stream]]\nkind = "CODE"', "stream 1: expected a `task` or a `role`, got neither"),
        ('[[stream]]\ntaks = "t"', "stream 1: unknown key 'taks', expected some of task, role"),
        ("[[stream]]\ntask = ['t']", "stream 1: task must be str, got ['t']"),
        ('[[stream]]\nrole = "r"\nkind = "task"', "stream 1: kind must be one of TASK, DELEGATE"),
        ('[[stream]]\nrole = "r"\nmode = "x"', "stream 1: mode must be forward or graft, got 'x'"),
        # No TOML at all.
        ("question = ", "is no council: expected a TOML file, got: Invalid value"),
        ('[[stream]\ntask = "t"', "is no council: expected a TOML file, got: "),
        ('task = "a"\ntask = "b"', "is no council: expected a TOML file, got: "),
        ("[" * 5000, "is no council: expected a TOML file, got: "),
    ],
)
def test_mistakes(path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        loaded(path, text)
    assert str(caught.value).startswith(str(path))


def test_what_cannot_be_read(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"council\.toml is no council: .* got: No such file"):
        council.load(path)
    path.write_bytes(b'question = "\xff"')
    with pytest.raises(ConfigError, match=r"council\.toml is no council: .* got: 'utf-8' codec"):
        council.load(path)
    with pytest.raises(ConfigError, match="is no council: expected a TOML file, got: Is a dir"):
        council.load(path.parent)


plain = st.one_of(
    st.booleans(), st.integers(-2, 100), st.floats(width=16), st.text("abc ", max_size=3)
)
KEYS = [*TOP, *STREAM, "other"]


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(x)}" for key, x in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
def test_any_table_is_a_council_or_wrong_in_a_known_place(path: Path, table: dict) -> None:
    text = "\n".join(f"{key} = {toml(value)}" for key, value in table.items())
    found, problem = None, f"{path}: "
    try:
        found = loaded(path, text)
    except ConfigError as error:
        problem = str(error)
    assert problem.startswith(f"{path}: ")
    if found:
        assert table.keys() <= TOP.keys()
        assert len(found.seats) == len(table.get("stream", []))
        assert found.question == table.get("question", "")
        assert all(seat.task.strip() or seat.role.strip() for seat in found.seats)
