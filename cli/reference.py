"""The command line's reference page: `python -m edgecortex.cli.reference > docs/cli.md`.

Written from what `--help` shows, in a form that does not depend on the terminal, nor on the
version of the library that prints `--help`.
"""

import textwrap
from collections.abc import Iterator
from typing import Any

import typer

from edgecortex.cli.main import app

WIDTH = 100
HEAD = """\
# The command line

<!-- Made by `python -m edgecortex.cli.reference > docs/cli.md`. Change the commands' own help. -->
"""


def page() -> str:
    """The whole page."""
    commands = list(_commands(typer.main.get_command(app), "edgecortex"))
    return "\n".join([HEAD, *(_section(command, path) for command, path in commands)])


def _commands(command: Any, path: str) -> Iterator[tuple[Any, str]]:
    """A command and all below it, each with its full name."""
    yield command, path
    for name, inner in _inner(command, path):
        yield from _commands(inner, name)


def _inner(command: Any, path: str) -> list[tuple[str, Any]]:
    found = getattr(command, "commands", {}).items()
    return [(f"{path} {name}", inner) for name, inner in found if not inner.hidden]


def _section(command: Any, path: str) -> str:
    params = [param for param in command.params if not getattr(param, "hidden", False)]
    arguments = [param for param in params if param.param_type_name == "argument"]
    options = [param for param in params if param.param_type_name == "option"]
    parts = [f"## {path}", *_paragraphs(command.help or ""), _usage(command, path, arguments)]
    items = [_item(param.name.upper(), param) for param in arguments]
    items += [_item(_names(param), param) for param in options]
    items += [_bullet(name, _summary(each)) for name, each in _inner(command, path)]
    return "\n\n".join([*parts, *(["\n".join(items)] if items else [])]) + "\n"


def _paragraphs(text: str) -> list[str]:
    return [_filled(" ".join(part.split())) for part in text.split("\n\n")]


def _usage(command: Any, path: str, arguments: list[Any]) -> str:
    words = [path, "[OPTIONS]", *map(_placeholder, arguments)]
    words += ["COMMAND …"] if _inner(command, path) else []
    return f"```text\n{' '.join(words)}\n```"


def _placeholder(argument: Any) -> str:
    name = argument.name.upper() + ("…" if argument.nargs != 1 else "")
    return name if argument.required else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.name.upper()}"


def _item(name: str, param: Any) -> str:
    text, default = param.help or "", param.default
    if isinstance(default, bool):
        default = (param.opts if default else param.secondary_opts or [None])[0]
    if param.show_default and default is not None:
        text += f" Default: `{default}`."
    elif param.required and param.param_type_name == "option":
        text += " Required."
    return _bullet(name, text)


def _summary(command: Any) -> str:
    return _paragraphs(command.help or "")[0]


def _bullet(name: str, text: str) -> str:
    return _filled(" ".join(f"`{name}`: {text}".split()), "- ", "  ")


def _filled(text: str, first: str = "", others: str = "") -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_on_hyphens=False,
        break_long_words=False,
    )


if __name__ == "__main__":
    print(page(), end="")
