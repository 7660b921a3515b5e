"""`edgecortex doctor --selftest`: what the device at hand computes, against plain arithmetic.

EdgeCortex is developed on a CPU. These checks run the code that a GPU runs, on random numbers and
tiny random models, and compare it with numpy or with MLX on the CPU.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx

from edgecortex import doctor, selftest_attention, selftest_kernels, selftest_models
from edgecortex.errors import ConfigError
from edgecortex.plain import Checks, Gap

GROUPS: dict[str, Callable[[], Checks]] = {
    "mlx": selftest_kernels.mlx_checks,
    "storage": selftest_kernels.storage_checks,
    "attention": selftest_attention.checks,
    "models": selftest_models.model_checks,
    "store": selftest_models.store_checks,
    "segments": selftest_models.segment_checks,
    "engine": selftest_models.engine_checks,
}
DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """Of one check: the error that came nearest to its tolerance, and where that was.

    They are None where it came to no number; `message` says what is wrong where something is.
    """

    group: str
    name: str
    passed: bool
    error: float | None
    tolerance: float | None
    where: str
    message: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """Of all checks."""

    device: str
    versions: dict[str, str | None]
    num_failed: int
    seconds: float
    checks: list[Outcome]


def run(device: str | None = None, progress: Progress = lambda step, done, total: None) -> Report:
    """Runs every check; takes 10 to 20 seconds on two CPU cores, and minutes with CUDA the first
    time: MLX compiles its kernels then.

    Args:
        device: `cpu` or `gpu`; None for the one that MLX chooses.

    Raises:
        ConfigError: there is no such device.
    """
    start, outcomes = time.perf_counter(), []
    with _on(device):
        checks = [(group, *check) for group, made in GROUPS.items() for check in made().items()]
        for i, check in enumerate(checks):
            progress("checking", i, len(checks))
            outcomes.append(outcome(*check))
        progress("checking", len(checks), len(checks))
        return Report(
            doctor.device_name(),
            doctor.versions(),
            sum(not found.passed for found in outcomes),
            time.perf_counter() - start,
            outcomes,
        )


def outcome(group: str, name: str, measure: Callable[[], Gap]) -> Outcome:
    """What a check finds. Whatever it raises is a failure of its own."""
    start = time.perf_counter()
    try:
        found = measure()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(group, name, False, None, None, "", reason, time.perf_counter() - start)
    size, most, where = found
    wrong = f"{where or 'result'}: expected an error up to {most:.2g}, got {size:.2g}"
    seconds = time.perf_counter() - start
    known, reason = size if math.isfinite(size) else None, "" if found.passed else wrong
    return Outcome(group, name, found.passed, known, most, where, reason, seconds)


@contextmanager
def _on(device: str | None) -> Iterator[None]:
    """Makes a device the default one for a while."""
    before = mx.default_device()
    if device:
        if device not in DEVICES or not mx.is_available(DEVICES[device]):
            there = [name for name, kind in DEVICES.items() if mx.is_available(kind)]
            raise ConfigError(
                f"MLX has no device {device!r} here: expected {' or '.join(there)}; leave --device "
                "out, or install an MLX that has it"
            )
        mx.set_default_device(DEVICES[device])
    try:
        yield
    finally:
        mx.set_default_device(before)
