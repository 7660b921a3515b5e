"""`edgecortex models`: what is shown, fetched and removed."""

import json
from pathlib import Path

import pytest

from edgecortex.models.catalogue import CONTEXT, catalogue
from edgecortex.models.machine import this_machine
from edgecortex.paths import models_dir
from tests.cli.conftest import Cli
from tests.models import tiny_gguf

NAMES = list(catalogue())


@pytest.fixture
def file(home: Path, tmp_path: Path) -> Path:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


@pytest.fixture
def tiny(file: Path, cli: Cli) -> str:
    """The name of a tiny model that is in the model folder."""
    result = cli("models", "pull", str(file))
    assert result.code == 0
    return Path(result.out.strip()).name


# list


def test_list_shows_every_model_in_full(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("models", "list")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert all(title in lines[1] for title in ("model", "size", "at 8K", "fits", "here"))
    for name in NAMES:
        row = next(line for line in lines if name in line)
        size, memory, fits, here = (cell.strip() for cell in row.split("│")[2:6])
        assert size.split()[1] in ("MB", "GB")
        assert memory.split()[1] in ("MB", "GB")
        assert (fits in ("yes", "no"), here) == (True, "")
    assert "Recommended for it: " in result.out


def test_list_as_json(cli: Cli, tiny: str) -> None:
    result = cli("models", "list", "--json")
    rows = {row["name"]: row for row in json.loads(result.out)}
    assert (result.code, result.err) == (0, "")
    assert list(rows) == [*NAMES, tiny]
    machine = this_machine()
    for name in NAMES:
        assert rows[name]["installed"] is False
        assert rows[name]["size_bytes"] == catalogue()[name].download_bytes
        assert rows[name]["memory_bytes"] == catalogue()[name].memory_bytes(CONTEXT, machine)
        assert isinstance(rows[name]["fits"], bool)
    assert sum(row["recommended"] for row in rows.values()) <= 1
    mine = rows[tiny]
    files = (models_dir() / tiny).iterdir()
    assert mine["size_bytes"] == sum(path.stat().st_size for path in files)
    assert (mine["installed"], mine["memory_bytes"], mine["fits"]) == (True, None, None)


def test_list_says_what_is_here(cli: Cli, smollm2: Path) -> None:
    rows = {row["name"]: row for row in json.loads(cli("models", "list", "--json").out)}
    size = sum(path.stat().st_size for path in smollm2.iterdir())
    assert (rows["smollm2-135m"]["installed"], rows["smollm2-135m"]["size_bytes"]) == (True, size)


# pull and path


def test_pull_prints_the_folder_alone(cli: Cli, file: Path) -> None:
    result = cli("models", "pull", str(file))
    assert (result.code, result.err) == (0, "")
    folder = Path(result.out.removesuffix("\n"))
    assert folder.parent == models_dir()
    assert (folder / "config.json").is_file()
    assert cli("models", "pull", folder.name).out == result.out
    assert cli("models", "path", folder.name).out == result.out


def test_path_of_a_model_of_the_catalogue(cli: Cli, smollm2: Path) -> None:
    assert cli("models", "path", "smollm2-135m").out == f"{smollm2}\n"


def test_path_of_what_is_not_here_fetches_nothing(cli: Cli, home: Path) -> None:
    result = cli("models", "path", "smollm2-135m")
    assert (result.code, result.out) == (1, "")
    expected = "'smollm2-135m' is not here; run `edgecortex models pull smollm2-135m`"
    assert result.err == f"edgecortex: {expected}\n"
    assert not home.exists()


@pytest.mark.parametrize("command", ["pull", "info", "path"])
def test_an_unknown_name_lists_those_there_are(cli: Cli, home: Path, command: str) -> None:
    result = cli("models", command, "smollm3")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("edgecortex: unknown model 'smollm3': expected one of ")
    assert all(name in result.err for name in NAMES)
    assert result.err.count("\n") == 1


def test_a_damaged_file(cli: Cli, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])
    result = cli("models", "pull", str(file))
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith(f"edgecortex: {file} is cut short or damaged")
    assert result.err.count("\n") == 1


# info


def test_info_of_a_model_that_is_not_here(cli: Cli, home: Path) -> None:
    facts = json.loads(cli("models", "info", "--json", "gemma3-12b").out)
    entry = catalogue()["gemma3-12b"]
    assert facts["path"] is None
    assert facts["source"] == facts["repository"] == entry.repository
    assert facts["num_parameters"] == entry.num_parameters


def test_info_of_one_that_is(cli: Cli, tiny: str) -> None:
    result = cli("models", "info", "--json", tiny)
    facts = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert (facts["name"], facts["path"]) == (tiny, str(models_dir() / tiny))
    assert facts["config"]["model_type"] == "llama"
    shown = cli("models", "info", tiny).out
    assert f"size_bytes  {facts['size_bytes']}" in shown


def test_info_of_a_damaged_one(cli: Cli, tiny: str) -> None:
    (models_dir() / tiny / "config.json").write_text("{")
    result = cli("models", "info", tiny)
    assert result.code == 1
    assert "config.json cannot be read: expected JSON" in result.err


# rm


def test_rm_asks(cli: Cli, tiny: str) -> None:
    refused = cli("models", "rm", tiny, stdin=b"n\n")
    assert (refused.code, refused.out.strip()) == (1, "")  # the prompt's last space is there
    assert f"Remove {tiny} from the model folder? [y/N]" in refused.err
    assert (models_dir() / tiny).is_dir()
    assert cli("models", "rm", tiny, stdin=b"").code == 1
    assert (models_dir() / tiny).is_dir()
    removed = cli("models", "rm", tiny, stdin=b"y\n")
    assert (removed.code, removed.out.strip()) == (0, f"removed {models_dir() / tiny}")
    assert not (models_dir() / tiny).exists()


def test_rm_without_asking_and_once_more(cli: Cli, tiny: str) -> None:
    assert cli("models", "rm", "--yes", tiny).code == 0
    again = cli("models", "rm", "--yes", tiny)
    assert (again.code, again.out) == (1, "")
    expected = f"no model {tiny!r} to remove: {models_dir()} has nothing"
    assert again.err == f"edgecortex: {expected}\n"


def test_rm_of_an_unknown_name_lists_what_is_here(cli: Cli, tiny: str) -> None:
    for name in ("smollm2-135m", "..", ".", "", f"../models/{tiny}", str(models_dir() / tiny)):
        result = cli("models", "rm", "--yes", name)
        assert (result.code, result.out) == (1, "")
        assert result.err.endswith(f" has {tiny}\n")
    assert (models_dir() / tiny).is_dir()


# usage


@pytest.mark.parametrize(
    "args", [["pull"], ["rm"], ["info", "--xml", "a"], ["fetch"], ["list", "extra"]]
)
def test_wrong_usage_is_status_2(cli: Cli, home: Path, args: list[str]) -> None:
    result = cli("models", *args)
    assert (result.code, result.out) == (2, "")
    assert "Usage: edgecortex models" in result.err
