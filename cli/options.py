"""What `chat` and `run` have in common: their options, and an engine made of them."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgecortex import models
from edgecortex.cli.models import progress_bar
from edgecortex.errors import PromptError

if TYPE_CHECKING:
    from edgecortex import Agent, Engine, SamplingParams

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_SYSTEM = "You are a helpful assistant."

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A catalogue name, a folder, a .gguf file or owner/repository."
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        "-s",
        help=f"System prompt; '' leaves it to the model. Default: {DEFAULT_SYSTEM}",
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option("--temp", help="Temperature; 0 is greedy.")]
TopP = Annotated[
    float, typer.Option("--top-p", help="Sample from the likeliest tokens of this total share.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Longest answer, in tokens.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Makes sampled answers repeatable.", show_default=False)
]


def sampling_of(temp: float, top_p: float, max_tokens: int, seed: int | None) -> "SamplingParams":
    """
    Raises:
        ConfigError: a value out of its range.
    """
    from edgecortex import SamplingParams

    return SamplingParams(temp, top_p, max_tokens, seed)


def load_engine(model: str) -> "Engine":
    """Loads a model; fetching and loading show on stderr."""
    if models.find(model) is None:
        with progress_bar() as progress:
            models.resolve(model, progress=progress)
    with Console(stderr=True).status(f"loading {model}"):
        from edgecortex import Engine

        return Engine.load(model)


def make_agent(engine: "Engine", system: str | None, sampling: "SamplingParams") -> "Agent":
    """An agent; without `--system` a model with a chat template gets a plain default."""
    if system is None and engine.model.tokenizer.has_chat_template:
        system = DEFAULT_SYSTEM
    return engine.agent(system=system or None, sampling=sampling)


def decoded(data: bytes) -> str:
    """Text that came in on stdin.

    Raises:
        PromptError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"stdin is not text: expected UTF-8, got byte 0x{data[error.start]:02x} at "
            f"{error.start}; convert it first, for example with iconv"
        ) from error
