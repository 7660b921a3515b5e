"""Which BLAS is opened, each case in a process of its own: it is chosen once in each."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="chosen on Linux only")

STATUS = "import edgecortex; from edgecortex import blas; print(blas.load().library)"


def _python(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {k: v for k, v in os.environ.items() if k != "EDGECORTEX_BLAS"} | environment
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )


def test_openblas_serves_mlx() -> None:
    done = _python(
        f"{STATUS}; from edgecortex.doctor import _serving as s; print(s('cblas_sgemm'))"
    )
    opened, serving = done.stdout.splitlines()
    assert os.path.samefile(opened, serving)
    assert "openblas" in serving
    assert done.stderr == ""


def test_the_result_is_that_of_the_reference() -> None:
    code = (
        "import edgecortex, mlx.core as mx; mx.random.seed(0); a = mx.random.normal((65, 130)); "
        "b = mx.random.normal((130, 33)); print((a @ b).flatten().tolist())"
    )
    ours, reference = (
        json.loads(_python(code, EDGECORTEX_BLAS=choice).stdout) for choice in ("", "off")
    )
    gaps = [abs(x - y) for x, y in zip(ours, reference, strict=True)]
    # 130 products of order 1, each rounded at 2**-24, summed in another order.
    assert max(gaps) < 130 * 2**-22


def test_off_leaves_the_wheels_own_in_silence() -> None:
    done = _python(STATUS, EDGECORTEX_BLAS="off")
    assert (done.stdout, done.stderr) == ("None\n", "")


def test_mlx_imported_first_warns_once_with_the_remedy() -> None:
    done = _python(f"import mlx.core; {STATUS}; blas.load(); import edgecortex.models.adapter")
    assert done.stdout == "None\n"
    assert done.stderr == (
        "edgecortex:0: RuntimeWarning: mlx was imported before edgecortex, so it runs on its own "
        "slow BLAS; import edgecortex first\n"
    )


def test_a_library_that_is_not_there_warns_once_with_the_remedy() -> None:
    done = _python(STATUS, EDGECORTEX_BLAS="/nowhere/libopenblas.so")
    assert done.stdout == "None\n"
    assert done.stderr.count("\n") == 1
    assert "cannot open /nowhere/libopenblas.so" in done.stderr
    assert done.stderr.endswith("; unset EDGECORTEX_BLAS\n")


def test_no_library_at_all_warns_once_with_the_remedy() -> None:
    hidden = (
        "import ctypes.util as c, importlib.metadata as m; "
        "c.find_library = lambda name: None; m.files = lambda name: []; "
    )
    done = _python(hidden + STATUS)
    assert done.stdout == "None\n"
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("pip install cmeel-openblas\n")


def test_its_threads_do_not_spin_unless_told_to() -> None:
    code = "import edgecortex, os; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    assert _python(code, OPENBLAS_THREAD_TIMEOUT="20").stdout == "20\n"
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_THREAD_TIMEOUT"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "4\n"
