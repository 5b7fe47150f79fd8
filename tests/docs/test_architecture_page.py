"""ARCHITECTURE.md and CONTRIBUTING.md name what is there: the layers, every file and folder, every make target."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = ("ARCHITECTURE.md", "CONTRIBUTING.md")
HOMES = (ROOT, ROOT / "gateway/volgate", ROOT / "clients/python")


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_layers_are_those_that_are_kept():
    contracts = tomllib.loads(text("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    kept = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    shown = re.search(r"^```layers\n(.*?)^```", text("ARCHITECTURE.md"), re.MULTILINE | re.DOTALL)
    assert shown
    assert shown[1].splitlines() == [layer.replace("volgate.", "") for layer in kept]


@pytest.mark.parametrize("page", NAMED)
def test_every_file_and_folder_that_a_page_names_is_there(page):
    named = {word.rstrip("/") for word in re.findall(r"`([a-z_]+(?:/[\w.-]+)+/?|[a-z_]+\.py|[a-z_]+/)`", text(page))}
    assert len(named) > 10
    assert not [word for word in named if not any((home / word).exists() for home in HOMES)]


def test_every_target_of_the_makefile_for_developers_is_explained():
    shown = set(re.findall(r"^    make ([a-z-]+) ", text("CONTRIBUTING.md"), re.MULTILINE))
    there = set(re.findall(r"^([a-z-]+):.*##", text("Makefile"), re.MULTILINE))
    assert shown <= there
    assert there - shown == {"help", "proto", "lab-stop", "clean"}


def test_the_readme_begins_with_the_two_commands():
    code = re.findall(r"^    (make [a-z]+)", text("README.md"), re.MULTILINE)
    assert code[:2] == ["make demo", "make test"]


def test_the_changelog_names_the_version_being_made():
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    headings = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert version in headings or f"What {version} will be" in text("CHANGELOG.md")
