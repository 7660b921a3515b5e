"""`ValidationGate`: whether a thought belongs to what the main agent is about."""

from dataclasses import dataclass, field

import numpy as np

from edgecortex.errors import ConfigError

# The source's 0.5 is for other scores. With these and SmolLM2-135M what is about the same topic
# scores 0.43 to 0.6, other text of the same kind 0.3 to 0.5, and another subject 0.2 to 0.4.
THRESHOLD = 0.43
# Read once, so that the states that the gate knows stand for text at large.
PLAIN_TEXT = (
    "The harbour was quiet when the ferry came in. Nobody had expected rain, yet by noon the "
    "streets were wet and the market stood empty. A function returns its result; a list holds "
    "items in order; water boils at one hundred degrees. In 1969 people first walked on the Moon. "
    "How do I reset my password? First, open the settings, then choose your account. She laughed, "
    "paid for the bread and went home. The committee will meet on Tuesday to discuss the budget."
)


@dataclass(frozen=True)
class Verdict:
    """`score` is a mean of cosines, -1 to 1."""

    score: float
    accepted: bool


class RunningStates:
    """Mean and spread of all hidden states (n, hidden_size) shown so far, per channel."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = np.zeros(1)  # squares: of what lies beside the mean

    def add(self, states: np.ndarray) -> None:
        """Counts states in (Chan, Golub and LeVeque, 1979), but for those that are no numbers:
        they would stay for good."""
        states = states.astype(np.float64)
        states = states[np.isfinite(states).all(axis=1)]
        if not len(states):
            return
        total, mean = self.count + len(states), states.mean(axis=0)
        off = mean - self._mean
        squares = ((states - mean) ** 2).sum(axis=0)
        self._squares = self._squares + squares + off**2 * (self.count * len(states) / total)
        self._mean = self._mean + off * (len(states) / total)
        self.count = total

    def standardized(self, states: np.ndarray) -> np.ndarray:
        """States less the mean, in units of the spread."""
        if not self.count:
            return states
        spread = np.sqrt(np.maximum(self._squares / self.count, 1e-12))
        return np.asarray((states - self._mean) / spread)


@dataclass
class ValidationGate:
    """Compares last-layer hidden states (n, hidden_size) of a thought with those of the main
    agent's newest tokens.

    The source (Warp-Cortex, section 3.5) takes the cosine of the two last tokens. But states of
    one model crowd in a direction of their own, so that raw cosines are near 1 for anything,
    and a last token says little. Here the thought is read by itself: what a Stream has in its
    states of the main agent's context is there whatever it thinks of. Channels are standardized
    by all states `seen` so far, each token of the thought is held against the main agent's most
    similar one, and the cosines are averaged (late interaction: ColBERT, arXiv 2004.12832).

    Raises:
        ConfigError: a threshold that is no cosine.
    """

    threshold: float = THRESHOLD
    seen: RunningStates = field(default_factory=RunningStates)

    def __post_init__(self) -> None:
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be between -1 and 1, got {self.threshold!r}")

    def judge(self, thought: np.ndarray, main: np.ndarray) -> Verdict:
        """The verdict on a thought. A score that is not a number is a rejection."""
        score = self.score(thought, main)
        return Verdict(score, bool(score >= self.threshold))

    def score(self, thought: np.ndarray, main: np.ndarray) -> float:
        """The mean of each thought token's best cosine."""
        a, b = (_unit(self.seen.standardized(states)) for states in (thought, main))
        return float(np.clip((a @ b.T).max(axis=1).mean(), -1, 1))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors."""
    return float((_unit(a[None]) @ _unit(b[None]).T)[0, 0])


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))
