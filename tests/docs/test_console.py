"""The runner of the pages fails when a page is wrong."""

import os
import time
from pathlib import Path

import pytest

from tests.docs import console


def play(folder, text):
    page = folder / "page.md"
    page.write_text(f"```console\n{text}\n```\n")
    return console.run(page, server="unix:/nowhere", folder=folder)


@pytest.mark.parametrize(
    "text",
    [
        "$ echo one   two\none two",
        "$ echo one; echo two\none\ntwo",
        "$ echo volume a1b2 made\nvolume ... made",
        "$ false  # exit 1",
        "$ word=here\n$ echo $word\nhere",
        "$ echo a \\\n b\na b",
        "$ printf 'no newline'\nno newline",
    ],
)
def test_a_page_that_is_right_passes(tmp_path, text):
    assert play(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["$ echo one\ntwo", "$ echo one; echo two\ntwo\none", "$ false", "$ true  # exit 1", "$ echo volume made\nvolume ... mad!"]
)
def test_a_page_that_is_wrong_fails(tmp_path, text):
    with pytest.raises(AssertionError):
        play(tmp_path, text)


def follow(folder, text):
    page = folder / "page.md"
    page.write_text(text)
    (folder / "walk").mkdir()
    return console.follow(page, folder=folder / "walk", environment=os.environ)


def test_a_page_is_followed_block_after_block(tmp_path):
    text = "```sh\nmkdir in\ncd in\nword=here\n```\n```toml title=a.toml\nx = 1\n```\n```console\n$ cat a.toml\nx = 1\n$ echo $word\nhere\n```\n"
    assert follow(tmp_path, text) == ["a.toml"]
    assert (tmp_path / "walk/in/a.toml").read_text() == "x = 1\n"


@pytest.mark.parametrize(
    "block", ["```sh\nfalse\ntrue\n```", "```sh\nexit 0\n```", "```console\n$ true\nseen\n```", "```python\nx = 1\n```"]
)
def test_a_page_that_cannot_be_followed_fails(tmp_path, block):
    with pytest.raises(AssertionError):
        follow(tmp_path, block)


def test_what_a_page_starts_ends_with_it(tmp_path):
    follow(tmp_path, "```sh\nsleep 600 & echo $! >pid\n```")
    process = Path("/proc", (tmp_path / "walk/pid").read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while process.exists() and process.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
