"""Every error a user can meet. Each message says what, expected, got and what to do."""


class EdgeCortexError(Exception):
    """Base of all errors that this package raises on purpose."""


class ModelError(EdgeCortexError):
    """A model cannot be found, fetched, read or run."""


class ConfigError(EdgeCortexError, ValueError):
    """A setting is out of its range or unknown."""


class PromptError(EdgeCortexError):
    """A prompt that cannot be answered: empty, or longer than the context."""


class ClosedError(EdgeCortexError):
    """An operation on an agent or engine that has been closed."""


class BudgetError(EdgeCortexError):
    """The memory budget cannot hold what was asked for."""


class StateError(EdgeCortexError):
    """An operation that the current state does not allow, such as cancelling twice."""


class StoreError(EdgeCortexError):
    """The store on disk, or a session in it, cannot be used as asked."""
