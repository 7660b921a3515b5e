"""Options that several commands of `edgecortex bench` have."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecortex.bench.benches import BENCHES
from edgecortex.errors import ConfigError


def _default(bench: str, setting: str) -> str:
    """What a setting is where it is not given, for a help text."""
    full, quick = (BENCHES[bench].chosen(quick)[setting] for quick in (False, True))
    return f"Default: {full}, with --quick {quick}."


def _passages(bench: str) -> Any:
    text = f"Passages of the text. {_default(bench, 'contexts')}"
    return typer.Option("--passages", min=2, help=text, show_default=False)


def _repeat(default: str, of: str = "Rounds of all sides") -> Any:
    text = f"{of}. {default}"
    return typer.Option("--repeat", min=1, help=text, show_default=False)


Contexts = Annotated[
    str | None,
    typer.Option(
        "--contexts",
        help="Lengths of the contexts in tokens, such as 512,2048.",
        show_default=False,
    ),
]
Agents = Annotated[
    str | None,
    typer.Option("--agents", help="Numbers of side agents, such as 16,100.", show_default=False),
]
TtftRepeat = Annotated[int | None, _repeat(_default("ttft", "repeat"))]
DecodeRepeat = Annotated[
    int | None, _repeat(_default("decode", "repeat"), "Processes, of several rounds each")
]
WorkflowRepeat = Annotated[int | None, _repeat(_default("workflow", "repeat"))]
CompareRepeat = Annotated[int | None, _repeat("Default: 3, with --quick too.")]
Gguf = Annotated[
    Path | None,
    typer.Option(
        "--gguf",
        help="The GGUF file that the model was imported from, for llama.cpp.",
        show_default=False,
    ),
]
SynapsePassages = Annotated[int | None, _passages("synapse")]
InjectionPassages = Annotated[int | None, _passages("injection")]
OwnText = Annotated[
    Path | None,
    typer.Option(
        "--text",
        help="Measure on this file's text. Default: Python's language reference.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Where MLX computes, cpu or gpu. Default: gpu where there is one.",
        show_default=False,
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="Measure less, in a minute or two.")]
Again = Annotated[
    bool,
    typer.Option("--again", help="Begin anew, not where an earlier start was stopped."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="Write results, a page and pictures into this folder.", show_default=False
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object: settings, figures and rows.")
]


def counts(text: str | None, option: str) -> list[int] | None:
    """
    Raises:
        ConfigError: not numbers with commas between them.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,6}(,[1-9][0-9]{0,6})*", text):
        raise ConfigError(f"{option} must be numbers such as 512,2048, got {text!r}")
    return sorted({int(number) for number in text.split(",")})
