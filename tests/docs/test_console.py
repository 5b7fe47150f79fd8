"""The runner of the pages fails when a page is wrong."""

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
