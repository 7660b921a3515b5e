"""What `chat`, `run` and `batch` have in common: their options, and an engine made of them."""

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgecortex import models
from edgecortex.cli.models import progress_bar
from edgecortex.config import EngineConfig, SamplingParams
from edgecortex.errors import ConfigError, PromptError
from edgecortex.kv.format import AUTO, FORMATS

if TYPE_CHECKING:
    from edgecortex import Agent, Engine

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_SYSTEM = "You are a helpful assistant."
INTERRUPTED = 130  # the exit status after Ctrl-C
DEFAULT_FORMAT = EngineConfig.kv_format

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
KVFormatName = Annotated[
    str,
    typer.Option("--kv-format", help=f"How KV is stored, one of: {', '.join([AUTO, *FORMATS])}."),
]
KVBudget = Annotated[
    str | None,
    typer.Option(
        "--kv-budget",
        help="Memory for KV in bytes, or with a suffix K, M or G (powers of 1,024) such as 512M. "
        "Default: half of what the device has.",
        show_default=False,
    ),
]
NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        help="Neither use KV that is on disk or another agent's, nor store any on disk.",
    ),
]


def sampling_of(temp: float, top_p: float, max_tokens: int, seed: int | None) -> SamplingParams:
    """
    Raises:
        ConfigError: a value out of its range.
    """
    return SamplingParams(temp, top_p, max_tokens, seed)


def engine_config(kv_format: str, kv_budget: str | None, no_cache: bool = False) -> EngineConfig:
    """
    Raises:
        ConfigError: no such format, or not a number of bytes.
    """
    num_bytes = None if kv_budget is None else num_bytes_of(kv_budget, "--kv-budget")
    return EngineConfig(
        kv_format=kv_format,
        kv_budget_bytes=num_bytes,
        share_prefixes=not no_cache,
        use_store=not no_cache,
    )


def num_bytes_of(text: str, option: str) -> int:
    """
    Raises:
        ConfigError: not a number of bytes.
    """
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)([KMG]?)", text.strip().upper())
    if match is None:
        raise ConfigError(
            f"{option} must be a number of bytes such as 2000000, 512M or 2G, got {text!r}"
        )
    return int(float(match[1]) * 1024 ** " KMG".index(match[2] or " "))


def load_engine(model: str, config: EngineConfig) -> "Engine":
    """Loads a model; fetching and loading show on stderr."""
    if models.find(model) is None:
        with progress_bar() as progress:
            models.resolve(model, progress=progress)
    with Console(stderr=True).status(f"loading {model}"):
        from edgecortex import Engine

        engine = Engine.load(model, config=config)
    if engine.notice:
        print(f"edgecortex: {engine.notice}", file=sys.stderr)
    if problem := engine.store_problem:
        print(f"edgecortex: nothing is kept on disk: {problem}", file=sys.stderr)
    return engine


def make_agent(engine: "Engine", system: str | None, sampling: SamplingParams) -> "Agent":
    """An agent with the system prompt asked for, or the default."""
    return engine.agent(system=system_prompt(engine, system), sampling=sampling)


def system_prompt(engine: "Engine", system: str | None) -> str | None:
    """Without `--system` a model with a chat template gets a plain default."""
    if system is None and engine.model.tokenizer.has_chat_template:
        system = DEFAULT_SYSTEM
    return system or None


def decoded(data: bytes, source: str = "stdin") -> str:
    """Text that came in from somewhere.

    Raises:
        PromptError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{source} is not text: expected UTF-8, got byte 0x{data[error.start]:02x} at "
            f"{error.start}; convert it first, for example with iconv"
        ) from error
