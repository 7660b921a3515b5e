"""A fast BLAS for MLX's CPU build on Linux, loaded before `mlx.core` is.

The Linux wheel bundles the reference BLAS. Symbols of a library that was opened with
RTLD_GLOBAL win over those that `mlx.core` brings along, so OpenBLAS is opened first.
`EDGECORTEX_BLAS` overrules the search: a library's path, or `off`.

Its threads, and those of numpy's own OpenBLAS, are told to sleep as soon as they have nothing to
do: as they are delivered they spin for 30 ms, and take a core from MLX's threads and each other.
"""

import ctypes
import ctypes.util
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REST = "4"  # OpenBLAS's threads wait 2 ** this many cycles for more work before they sleep


@dataclass(frozen=True)
class BlasStatus:
    """Which BLAS MLX will call: `library` is None for the one MLX brings along."""

    library: Path | None
    problem: str | None = None


@cache
def load() -> BlasStatus:
    """Opens OpenBLAS for MLX, once in a process. Never raises: a problem is in the status."""
    choice = os.environ.get("EDGECORTEX_BLAS", "")
    if sys.platform != "linux" or choice == "off":
        return BlasStatus(None)
    if "mlx.core" in sys.modules:
        return BlasStatus(
            None,
            "mlx was imported before edgecortex, so it runs on its own slow BLAS; "
            "import edgecortex first",
        )
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", REST)
    library = Path(choice) if choice else _find_openblas()
    if library is None:
        return BlasStatus(
            None, "no OpenBLAS found, MLX runs on its own slow BLAS; pip install cmeel-openblas"
        )
    try:
        _open_global(library)
    except OSError as error:
        remedy = "unset EDGECORTEX_BLAS" if choice else "install libgfortran5"
        return BlasStatus(None, f"cannot open {library} ({error}); {remedy}")
    return BlasStatus(library)


def _find_openblas() -> Path | None:
    for path in _wheel_files("cmeel-openblas", "libopenblas.so"):
        return path
    system = ctypes.util.find_library("openblas")
    return Path(system) if system else None


def _wheel_files(distribution: str, prefix: str) -> Iterator[Path]:
    """Installed files of a distribution whose name starts with `prefix`."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith(prefix):
            yield Path(str(file.locate()))


def _open_global(library: Path) -> None:
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        if "libgfortran" not in str(error) or not _lend_libgfortran():
            raise
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _lend_libgfortran() -> bool:
    """Makes the libgfortran inside the mlx or numpy wheel known as `libgfortran.so.5`.

    Wheels carry it under a name of their own (auditwheel adds a hash). The loader goes by
    the SONAME in the file, so a copy in memory with the plain SONAME serves everyone after.
    """
    plain = b"libgfortran.so.5"
    for distribution in ("mlx-cpu", "numpy"):
        for fortran in _wheel_files(distribution, "libgfortran-"):
            name = fortran.name.encode()
            image = fortran.read_bytes().replace(name, plain.ljust(len(name), b"\0"))
            memory = os.memfd_create("libgfortran")
            os.write(memory, image)
            try:
                for quadmath in _wheel_files(distribution, "libquadmath-"):
                    ctypes.CDLL(str(quadmath), mode=ctypes.RTLD_GLOBAL)
                ctypes.CDLL(f"/proc/self/fd/{memory}", mode=ctypes.RTLD_GLOBAL)
                return True
            except OSError:
                continue
            finally:
                os.close(memory)
    return False
