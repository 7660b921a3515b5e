"""`ValidationGate`: whether a thought belongs to what the main agent is about."""

from dataclasses import dataclass, field

import numpy as np

from edgecortex.errors import ConfigError


@dataclass(frozen=True)
class Verdict:
    """`score` is a cosine, -1 to 1."""

    score: float
    accepted: bool


@dataclass
class ValidationGate:
    """Compares last-layer hidden states (n, hidden_size) of a thought with those of the main
    agent (Warp-Cortex, section 3.5).

    The source takes the cosine of the last tokens' states. States of one model crowd in a
    direction of their own, so that raw cosines are near 1 for anything: here both sides are
    means over their tokens, `centred` on the running mean of all states seen so far.

    Raises:
        ConfigError: a threshold that is no cosine.
    """

    threshold: float = 0.5
    centred: bool = True
    _sum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _count: int = 0

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be between -1 and 1, got {self.threshold!r}")

    def observe(self, states: np.ndarray) -> None:
        """Adds states to the running mean."""
        total = states.sum(axis=0, dtype=np.float64)
        self._sum = self._sum + total if self._count else total
        self._count += len(states)

    def judge(self, thought: np.ndarray, main: np.ndarray) -> Verdict:
        """The verdict on a thought. A score that is not a number is a rejection."""
        score = self.score(thought, main)
        return Verdict(score, bool(score >= self.threshold))

    def score(self, thought: np.ndarray, main: np.ndarray) -> float:
        """The cosine between the mean states, less the running mean if `centred`."""
        mean = self._sum / self._count if self.centred and self._count else 0.0
        a, b = (states.mean(axis=0, dtype=np.float64) - mean for states in (thought, main))
        size = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / size if size else 0.0
