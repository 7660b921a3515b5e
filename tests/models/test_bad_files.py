"""Files that cannot be imported: one line that says why, and nothing left in the model folder."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgecortex import models
from edgecortex.errors import ModelError
from edgecortex.paths import models_dir
from tests.models import tiny_gguf


def left_behind() -> list[str]:
    """What is in the model folder, but for locks, which are empty and stay."""
    return [path.name for path in models_dir().glob("*") if path.suffix != ".lock"]


def refusal(path: Path) -> str:
    """The message with which a file is refused."""
    with pytest.raises(ModelError) as refused:
        models.resolve(str(path))
    assert "\n" not in str(refused.value)
    assert left_behind() == []
    return str(refused.value)


@pytest.fixture
def tiny(home: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny GGUF file."""

    def run(*args: Any, **options: Any) -> Path:
        tiny_gguf.write(tmp_path / "tiny.gguf", *args, **options)
        return tmp_path / "tiny.gguf"

    return run


class Content(bytes):
    """A file's content, which pytest and hypothesis need not show."""

    def __repr__(self) -> str:
        return f"{len(self)} bytes"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Content:
    path = tmp_path_factory.mktemp("good") / "tiny.gguf"
    tiny_gguf.write(path)
    return Content(path.read_bytes())


def test_the_file_itself_is_good(tiny: Callable[..., Path]) -> None:
    assert models.resolve(str(tiny())).name in left_behind()


@pytest.mark.parametrize(
    "num_bytes", [4, 7, 20, 24, 40, 300, 1000, 2000, 4000, 6000, 20_000, 1_000_000, -1024, -1]
)
def test_cut_short(tmp_path: Path, home: Path, good: Content, num_bytes: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(good[:num_bytes])
    message = refusal(path)
    assert message.startswith(f"{path} is cut short or damaged (")
    assert f"got {path.stat().st_size:,} bytes; fetch the file again" in message


def test_a_list_longer_than_the_file(tmp_path: Path, home: Path, good: Content) -> None:
    key = b"tokenizer.ggml.token_type"
    start = good.index(key) + len(key) + 8  # after two types of 4 bytes each
    path = tmp_path / "long.gguf"
    path.write_bytes(good[:start] + (1 << 18).to_bytes(8, "little") + good[start + 8 : 6000])
    assert "is cut short or damaged (expected 1 more numbers at byte " in refusal(path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 and more", b"<!doctype html>"])
def test_not_gguf(tmp_path: Path, home: Path, content: bytes) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(content)
    expected = f"{path} is not a GGUF file: expected b'GGUF' first, got {content[:4]!r}"
    assert refusal(path) == expected


@given(position=st.integers(4, 6500), byte=st.integers(0, 255))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_byte_is_refused_or_does_no_harm(
    tmp_path: Path, home: Path, good: Content, position: int, byte: int
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(good[:position] + bytes([byte]) + good[position + 1 :])
    message = ""
    try:
        shutil.rmtree(models.resolve(str(path)))
    except ModelError as error:
        message = str(error)
    assert "\n" not in message
    assert left_behind() == []


def test_an_unknown_architecture(tiny: Callable[..., Path]) -> None:
    message = refusal(tiny(architecture="mamba"))
    assert "architecture of llama, qwen2, gemma3, got 'mamba'" in message


def test_an_unknown_tokenizer(tiny: Callable[..., Path]) -> None:
    assert "tokenizer of the kind gpt2 or llama, got 'rwkv'" in refusal(tiny(tokenizer="rwkv"))


def test_a_merge_of_unknown_tokens(tiny: Callable[..., Path]) -> None:
    assert "damaged: it merges 'h' and 'x' to no token" in refusal(tiny(merges=["h x"]))


def test_a_sentencepiece_tokenizer_is_known(tiny: Callable[..., Path]) -> None:
    assert models.resolve(str(tiny(tokenizer="llama"))).is_dir()


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps.weight", "blk.0.sinks", "v.patch_embd"])
def test_an_extra_tensor(tiny: Callable[..., Path], name: str) -> None:
    message = refusal(tiny(extra={name: np.ones((2, 32), np.float32)}))
    assert f"the tensor {name!r} is not part of a plain llama model" in message


@pytest.mark.parametrize("name", ["blk.2.attn_q.weight", "token_embd.weight"])
def test_a_missing_tensor(tiny: Callable[..., Path], name: str) -> None:
    message = refusal(tiny(without=name))
    assert "expected a whole model, got one without model." in message
    assert "(1 are missing); if it is split into several files, join them first" in message


def test_a_file_that_is_not_there(home: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.gguf").endswith("none.gguf: No such file or directory")


# The disk.


def test_too_little_room(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tiny().parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    message = refusal(tiny())
    assert message.startswith(f"not enough room in {models_dir()}")
    assert "got 1 MB; free some, or set EDGECORTEX_HOME to another disk" in message


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("edgecortex.models.gguf_import.write_safetensors", failing)
    assert refusal(tiny()).startswith(f"the disk of {models_dir()} is full; free some room")


LIMITED = """
import resource, sys
from edgecortex import models
from edgecortex.errors import ModelError
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
try:
    models.resolve(sys.argv[1])
except ModelError as error:
    print(error)
"""


def test_a_write_that_the_system_refuses(tiny: Callable[..., Path]) -> None:
    command = [sys.executable, "-c", LIMITED, str(tiny())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"cannot write the model folder {models_dir()}: [Errno 27] File too large\n"
    )
    assert left_behind() == []


FULL = """
mount -t tmpfs -o size=64k none "$1" || exit 77
EDGECORTEX_HOME=$1 "$2" -c "$3" "$4"
status=$?
find "$1/models" -mindepth 1 -not -name '*.lock'
exit $status
"""
# The room is checked before, so the check is taken away: the disk fills up all the same.
UNCHECKED = """
import sys
from edgecortex import models
from edgecortex.errors import ModelError
from edgecortex.models import folders, gguf_import
folders.check_room = gguf_import.check_room = lambda folder, num_bytes: None
try:
    models.resolve(sys.argv[1])
except ModelError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_disk_that_is_really_full(tiny: Callable[..., Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = ["sh", "-c", FULL, "sh", str(disk), sys.executable, UNCHECKED, str(tiny())]
    command = ["unshare", "--map-root-user", "--mount", *script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no mounts in a namespace here")
    assert done.stdout == (
        f"the disk of {disk}/models is full; free some room, or set EDGECORTEX_HOME to another "
        "disk\n"
    )


def test_a_model_folder_that_cannot_be_made(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EDGECORTEX_HOME", str(tmp_path / "file"))
    message = refusal(tiny())
    assert message.startswith(f"cannot write the model folder {tmp_path}/file/models: ")
