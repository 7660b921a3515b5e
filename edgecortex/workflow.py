"""Workflows: phases of agents that go on from the KV of earlier phases (cross-phase injection,
arXiv 2603.04428).

    name = "Two people and a plan"

    [agents.ann]
    system = "You are Ann, a careful planner."

    [agents.critic]
    from = "ann"                        # begins as ann is when the critic is first asked

    [[phases]]
    name = "Plan"

    [[phases.turns]]
    agent = "ann"
    ask = "Plan a picnic."
    reply = "Saturday, by the lake."    # given; without it the model answers

    [[phases]]
    name = "Review"

    [[phases.turns]]
    agent = "critic"
    ask = "Somebody planned: {ann} What is missing?"

Each phase has a name of its own. An agent's newest answer stands for `{its name}` in later
questions. A turn without an agent goes to the one whose `topics` the question has most of.
`document` is read by an agent before it is asked anything: a file beside the workflow's, or
`python:TOPIC` of Python's language reference.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecortex.errors import ConfigError
from edgecortex.paths import expanded
from edgecortex.tables import TEXT, checked, read

BUILT_IN = Path(__file__).parent / "workflows"
MAX_TOKENS = 32
PLACE = re.compile(r"\{([\w-]+)\}")  # of an agent's newest answer
TOP = {"name": TEXT, "description": TEXT, "agents": (dict,), "phases": (list,)}
ROLE = {"system": TEXT, "document": TEXT, "from": TEXT, "topics": (list,)}
PHASE = {"name": TEXT, "together": (bool,), "turns": (list,)}
TURN = {"agent": TEXT, "ask": TEXT, "reply": TEXT, "max_tokens": (int,)}


@dataclass(frozen=True)
class Role:
    """An agent of a workflow: what it is told first, or whose past it shares."""

    system: str | None = None
    document: str | None = None
    source: str | None = None
    topics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """A question to an agent, and the answer where that is given."""

    agent: str
    ask: str
    reply: str | None = None
    max_tokens: int = MAX_TOKENS


@dataclass(frozen=True)
class Phase:
    """Turns one after the other, or with `together` all at once."""

    name: str
    turns: tuple[Turn, ...]
    together: bool = False


@dataclass(frozen=True)
class Workflow:
    """Phases, and the agents that appear in them.

    Raises:
        ConfigError: two phases have one name.
    """

    name: str
    description: str
    agents: dict[str, Role]
    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        for number, name in enumerate(names, 1):
            if (first := names.index(name) + 1) < number:
                raise ConfigError(
                    f"phase {number}: expected a name of its own, got {name!r}, which phase "
                    f"{first} has; rename one of them"
                )


def built_in() -> dict[str, Path]:
    """The workflows that come along, by name."""
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.toml"))}


def load(name: str) -> Workflow:
    """A workflow by the name of one that comes along, or out of a TOML file.

    Raises:
        ConfigError: there is none, or it is wrong; the message says where.
    """
    path = built_in().get(name, expanded(name))
    try:
        values = read(path)
    except FileNotFoundError as error:
        known = ", ".join(built_in())
        raise ConfigError(
            f"no workflow {name!r}: expected a TOML file, or one of {known}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name} is no workflow: {error}") from error
    try:
        return _workflow(values, path.parent)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def fill(text: str, answers: Mapping[str, str]) -> str:
    """A question with the newest answers in their places."""
    return PLACE.sub(lambda match: answers.get(match[1], match[0]), text)


def _workflow(values: dict[str, Any], folder: Path) -> Workflow:
    checked(values, "the workflow", TOP)
    agents = {name: _role(role, name, folder) for name, role in values.get("agents", {}).items()}
    _check_sources(agents)
    phases = values.get("phases", [])
    if not agents or not phases:
        raise ConfigError("expected at least one of [agents.NAME] and of [[phases]]")
    made = tuple(_phase(phase, number, agents) for number, phase in enumerate(phases, 1))
    return Workflow(values.get("name", "workflow"), values.get("description", ""), agents, made)


def _role(values: Any, name: str, folder: Path) -> Role:
    where = f"agent {name!r}"
    values = dict(checked(values, where, ROLE))
    if not all(type(item) is str for item in values.get("topics", ())):
        raise ConfigError(f"{where}: topics must be a list of words, got {values['topics']!r:.60}")
    if "from" in values and len(values) > 1 and set(values) != {"from", "topics"}:
        raise ConfigError(f"{where} has `from`, so its system prompt and document are that agent's")
    if "document" in values:
        values["document"] = _document(values["document"], where, folder)
    values["source"] = values.pop("from", None)
    return Role(**{**values, "topics": tuple(values.get("topics", ()))})


def _document(name: str, where: str, folder: Path) -> str:
    if name.startswith("python:"):
        from pydoc_data import topics

        if (text := topics.topics.get(name.removeprefix("python:"))) is None:
            raise ConfigError(f"{where}: Python's reference has no topic {name!r}")
        return text
    try:
        return (folder / name).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot read its document: {error}") from error


def _check_sources(agents: Mapping[str, Role]) -> None:
    for name in agents:
        seen, at = [name], agents[name].source
        while at is not None:
            if at not in agents:
                raise ConfigError(f"agent {seen[-1]!r} is from {at!r}, which is no agent")
            if at in seen:
                raise ConfigError(f"agents {', '.join(map(repr, seen))} are from each other")
            seen.append(at)
            at = agents[at].source


def _phase(values: Any, number: int, agents: Mapping[str, Role]) -> Phase:
    where = f"phase {number}"
    checked(values, where, PHASE)
    turns = tuple(
        _turn(turn, f"{where}, turn {i}", agents)
        for i, turn in enumerate(values.get("turns", []), 1)
    )
    together = values.get("together", False)
    if not turns:
        raise ConfigError(f"{where}: expected at least one of [[phases.turns]]")
    if together and len({turn.agent for turn in turns}) < len(turns):
        raise ConfigError(f"{where}: turns taken together must each have an agent of their own")
    return Phase(values.get("name", where), turns, together)


def _turn(values: Any, where: str, agents: Mapping[str, Role]) -> Turn:
    values = dict(checked(values, where, TURN))
    if not values.get("ask", "").strip():
        raise ConfigError(f"{where}: expected a question in `ask`")
    if values.get("reply") == "" or values.get("max_tokens", 1) < 1:
        raise ConfigError(f"{where}: `reply` must be text and `max_tokens` at least 1")
    if "agent" not in values:
        values["agent"] = _routed(values["ask"], where, agents)
    for name in [values["agent"], *PLACE.findall(values["ask"])]:
        if name not in agents:
            raise ConfigError(f"{where}: no agent {name!r}; there are {', '.join(agents)}")
    return Turn(**values)


def _routed(question: str, where: str, agents: Mapping[str, Role]) -> str:
    """The agent with the most topics among the question's words."""
    words = set(re.findall(r"[\w-]+", question.lower()))
    hits = {name: len(words & {t.lower() for t in role.topics}) for name, role in agents.items()}
    best = max(hits, key=lambda name: hits[name])
    if not hits[best]:
        raise ConfigError(f"{where}: no `agent`, and no agent's `topics` are in the question")
    return best
