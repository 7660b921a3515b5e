"""Councils: a question, and the Streams that think about it. Their files:

    question = "Should we move the launch to May?"
    threshold = 0.43                      # of the gate, -1 to 1; -1 lets every thought through

    [[stream]]
    task = "List what has to be ready before a launch."

    [[stream]]
    role = "You are a sceptic: say what is doubtful."    # is asked the question itself

`system`, `mode` (`forward` or `graft`) and `landmarks` may stand beside the question, and `kind`
and `mode` in a stream.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecortex.errors import ConfigError
from edgecortex.tables import TEXT, checked, read
from edgecortex.warp.router import KINDS

TOP = {
    "question": TEXT,
    "system": TEXT,
    "threshold": (float, int),
    "landmarks": (int,),
    "mode": TEXT,
    "stream": (list,),
}
STREAM = {"task": TEXT, "role": TEXT, "kind": TEXT, "mode": TEXT}


@dataclass(frozen=True)
class Seat:
    """What one Stream is to think about, and as what kind of helper: without a `task` about the
    question itself. An empty `mode` is the council's.

    Raises:
        ConfigError: neither a task nor a role, or no such kind or mode.
    """

    task: str = ""
    role: str = ""
    kind: str = "TASK"
    mode: str = ""

    def __post_init__(self) -> None:
        if not (self.task.strip() or self.role.strip()):
            raise ConfigError("expected a `task` or a `role`, got neither")
        if self.kind not in KINDS:
            raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.mode:
            _check_mode(self.mode)


def _threshold() -> float:
    from edgecortex.warp.gate import THRESHOLD

    return THRESHOLD


@dataclass(frozen=True)
class Council:
    """A question and who thinks about it. `threshold` None lets every thought through;
    `landmarks` None is as many as the length of what was said asks for.

    Raises:
        ConfigError: a value out of its range.
    """

    question: str = ""
    seats: tuple[Seat, ...] = ()
    system: str | None = None
    threshold: float | None = field(default_factory=_threshold)
    landmarks: int | None = None
    mode: str = "forward"

    def __post_init__(self) -> None:
        from edgecortex.warp.synapse import Synapse

        _check_mode(self.mode)
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be between -1 and 1, got {self.threshold!r}")
        try:
            Synapse(num_landmarks=self.landmarks)
        except ConfigError as error:
            raise ConfigError(f"landmarks: {error}") from error


def load(path: Path) -> Council:
    """A council out of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is wrong; the message says where.
    """
    try:
        values = read(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} is no council: expected a TOML file, got: {reason}") from error
    try:
        return _council(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _council(values: dict[str, Any]) -> Council:
    rest = dict(checked(values, "the council", TOP))
    if not rest.get("question", "?").strip():
        raise ConfigError("expected text in `question`, got none")
    seats = [_seat(seat, number) for number, seat in enumerate(rest.pop("stream", []), 1)]
    return Council(**rest, seats=tuple(seats))


def _seat(values: Any, number: int) -> Seat:
    where = f"stream {number}"
    checked(values, where, STREAM)
    try:
        return Seat(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_mode(mode: str) -> None:
    from edgecortex.warp.injection import MODES

    if mode not in MODES:
        raise ConfigError(f"mode must be {' or '.join(MODES)}, got {mode!r}")
