"""What EdgeCortex finds on this machine, and what is wrong with it."""

import ctypes
import importlib.metadata
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import edgecortex
from edgecortex import blas, paths
from edgecortex.models.machine import memory_bytes

SLOW_GFLOPS = 10.0
"""Below this a CPU's matmul is not a tuned one; the reference BLAS makes about 2."""
LEAST_FREE_BYTES = 1_000_000_000
"""Room for the default model and some KV."""
_SIZE = 1024


@dataclass(frozen=True)
class Problem:
    """Something wrong, and what to do about it."""

    what: str
    remedy: str


@dataclass(frozen=True)
class Blas:
    """`serving` is the file that answers `cblas_sgemm`; None where MLX does not ask for it."""

    serving: str | None
    opened: str | None
    gflops: float


@dataclass(frozen=True)
class Folder:
    """One of our folders; `num_bytes` is None while it does not exist."""

    path: str
    num_bytes: int | None


@dataclass(frozen=True)
class Examination:
    """All findings, in plain values."""

    device: str | None
    memory_bytes: int
    versions: dict[str, str | None]
    blas: Blas | None
    folders: dict[str, Folder]
    problems: list[Problem]


def examine() -> Examination:
    """Looks at everything; takes a second or two. Writes nothing."""
    problems = list(_folder_problems())
    device, live = None, None
    try:
        device, live = device_name(), _blas()
        problems += _blas_problems(live, on_cpu=device.startswith("CPU"))
    except ImportError as error:
        remedy = "pip install --force-reinstall 'mlx[cpu]' (a Mac needs only mlx)"
        problems.append(Problem(f"mlx cannot be imported: {error}", remedy))
    return Examination(device, memory_bytes(), versions(), live, _folders(), problems)


def device_name() -> str:
    """Such as `CPU (AMD EPYC)`."""
    import mlx.core as mx

    from edgecortex.cpu import on_cpu

    kind = "CPU" if on_cpu() else "GPU"
    return f"{kind} ({mx.device_info().get('device_name', 'unknown')})"


def versions() -> dict[str, str | None]:
    """Of EdgeCortex, Python and what decides speed; None for what is not installed."""
    found: dict[str, str | None] = {
        "edgecortex": edgecortex.__version__,
        "python": sys.version.split()[0],
    }
    for name in ("mlx", "mlx-lm", "cmeel-openblas"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


# BLAS.


def _blas() -> Blas:
    opened = blas.load().library
    return Blas(_serving("cblas_sgemm"), str(opened) if opened else None, _measured_gflops())


class _SymbolInfo(ctypes.Structure):
    """`Dl_info` of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _serving(symbol: str) -> str | None:
    """The file whose `symbol` MLX calls: the loader looks in the global scope before MLX's own."""
    import mlx.core as mx

    everyone = ctypes.CDLL(None)
    for scope in (everyone, ctypes.CDLL(mx.__file__)):
        function = getattr(scope, symbol, None)
        info = _SymbolInfo()
        if function and everyone.dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info)):
            return os.path.realpath(os.fsdecode(info.file))
    return None


def _measured_gflops() -> float:
    """Of an fp32 matmul, the better of two after a first that is not counted."""
    import mlx.core as mx

    a = mx.ones((_SIZE, _SIZE))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        mx.eval(a @ a)
        seconds.append(time.perf_counter() - start)
    return 2 * _SIZE**3 / min(seconds[1:]) / 1e9


def _blas_problems(live: Blas, on_cpu: bool) -> Iterator[Problem]:
    what, _, remedy = (blas.load().problem or "").partition("; ")
    if what:
        yield Problem(what, remedy)
    elif os.environ.get("EDGECORTEX_BLAS") == "off" and on_cpu and sys.platform == "linux":
        yield Problem("MLX runs on its own slow BLAS: EDGECORTEX_BLAS is off", "unset it")
    elif live.opened and live.serving and not os.path.samefile(live.opened, live.serving):
        yield Problem(
            f"{live.opened} was opened but {live.serving} serves",
            "unset LD_PRELOAD, and start edgecortex without other BLAS libraries",
        )
    elif on_cpu and live.gflops < SLOW_GFLOPS:
        yield Problem(
            f"fp32 matmul runs at {live.gflops:.1f} GFLOP/s, a tuned BLAS makes over 10 a core",
            "end other heavy programs and try again, or set EDGECORTEX_BLAS to another library",
        )


# Folders.


def _folders() -> dict[str, Folder]:
    from edgecortex.models.folders import size_of

    named = {
        "models": paths.models_dir(),
        "store": paths.store_dir(),
        "state": paths.state_dir(),
    }
    return {
        name: Folder(str(path), size_of(path) if path.is_dir() else None)
        for name, path in named.items()
    }


def _folder_problems() -> Iterator[Problem]:
    home = paths.home()
    there = next(path for path in (home, *home.parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield Problem(f"{home} cannot be written", "set EDGECORTEX_HOME to a folder of your own")
    elif (free := shutil.disk_usage(there).free) < LEAST_FREE_BYTES:
        yield Problem(
            f"the disk of {home} has only {free / 1e6:,.0f} MB free",
            "free some, or set EDGECORTEX_HOME to another disk",
        )
    for private in (paths.store_dir(), paths.state_dir()):
        if private.is_dir() and stat.S_IMODE(private.stat().st_mode) & 0o077:
            yield Problem(f"others can read {private}", f"chmod -R go-rwx {private}")
