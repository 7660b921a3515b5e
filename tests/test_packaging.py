"""The wheel holds the tree, and the README's commands are the ones that are run."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOMES = {"edgecortex": "edgecortex"} | {
    name: f"edgecortex/{name}" for name in ("cli", "models", "bench")
}
"""Folder of the tree to folder of the wheel."""


def _files(folder: str) -> set[Path]:
    found = (ROOT / folder).rglob("*")
    return {p.relative_to(ROOT / folder) for p in found if p.is_file() and p.suffix != ".pyc"}


def test_the_wheel_holds_every_file_of_the_tree(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: builds leave files that a later one would pick up
    for folder in HOMES:
        shutil.copytree(ROOT / folder, source / folder)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    subprocess.run([*pip, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    tree = {f"{home}/{file}" for folder, home in HOMES.items() for file in _files(folder)}
    assert packed == tree


def _commands() -> list[str]:
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text("utf-8"), re.M)


def test_two_commands_do_all_the_setup() -> None:
    chat, tests = _commands()
    assert chat.endswith("edgecortex chat")
    assert tests.endswith("pytest")


def test_ci_runs_the_readme_command() -> None:
    ci = (ROOT / ".ci/run").read_text("utf-8")
    (line,) = [line for line in ci.splitlines() if line.startswith("tests=")]
    script = f'{line}; printf %s "$tests"'
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == _commands()[1]
    assert ci.endswith('eval "$tests"\n')
