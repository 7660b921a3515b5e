"""The reference page: complete, and no older than the commands."""

import re
from pathlib import Path

import pytest

from edgecortex.cli import reference
from tests.cli.conftest import Cli

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
MAKE = "python -m edgecortex.cli.reference > docs/cli.md"
TITLES = re.findall(r"^## (edgecortex.*)$", reference.page(), re.M)


def test_the_page_is_as_its_command_makes_it() -> None:
    assert PAGE.read_text("utf-8") == reference.page(), f"docs/cli.md is old: {MAKE}"
    assert MAKE in reference.page()


def words(text: str) -> set[str]:
    """All options that a text names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - {"--help"}


@pytest.mark.parametrize("title", TITLES)
def test_a_section_has_what_help_has(cli: Cli, monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    section = re.split(r"^## ", reference.page(), flags=re.M)[1 + TITLES.index(title)]
    shown = cli(*title.split()[1:], "--help")
    assert shown.code == 0
    assert words(section) == words(shown.out)
    inner = set(re.findall(rf"^- `{title} ([a-z]+)`", section, re.M))
    assert {f"{title} {name}" for name in inner} <= set(TITLES)
    assert all(re.search(rf"\b{name}\b", shown.out) for name in inner)


def test_every_command_is_there(cli: Cli) -> None:
    groups = ["session", "cache", "models", "bench"]
    assert {f"edgecortex {name}" for name in ("chat", "run", "doctor", *groups)} <= set(TITLES)
    for group in groups:
        assert [title for title in TITLES if title.startswith(f"edgecortex {group} ")]


def test_lines_are_of_one_width_and_nothing_is_of_this_machine() -> None:
    text = reference.page()
    assert max(map(len, text.splitlines())) <= reference.WIDTH
    assert "\x1b" not in text
    assert str(Path.home()) not in text


def test_defaults_are_given() -> None:
    section = reference.page().partition("## edgecortex run\n")[2]
    assert "`--temp TEMP`: Temperature; 0 is greedy. Default: `0.0`." in section
    section = reference.page().partition("## edgecortex workflow\n")[2]
    assert "Default: `--compare`." in " ".join(section.split())
    section = reference.page().partition("## edgecortex cache prune\n")[2]
    assert "`--to TO`: What may stay, such as 500M or 2G. Required." in section
