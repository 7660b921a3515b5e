"""Threads of a process share one heap, unless its user wants something else."""

import os
import subprocess
import sys

import pytest

from edgecortex import heap

# Four threads that hold memory at the same time; then glibc tells of its heaps.
THREADS = """
import ctypes, sys, threading
{first}
barrier = threading.Barrier(4)
def hold():
    held = [bytearray(5000) for _ in range(100)]
    barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


def num_heaps(first: str, **variables: str) -> int:
    program = THREADS.format(first=first)
    clean = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    told = subprocess.check_output([sys.executable, "-c", program], env=clean | variables)
    return told.count(b"<heap nr=")


@pytest.mark.skipif(heap._mallopt is None, reason="the heap is not glibc's")
def test_threads_share_the_heap() -> None:
    assert num_heaps("") > 1
    assert num_heaps("import edgecortex") == 1


@pytest.mark.skipif(heap._mallopt is None, reason="the heap is not glibc's")
def test_a_user_may_want_more() -> None:
    assert num_heaps("import edgecortex", MALLOC_ARENA_MAX="3") > 1
