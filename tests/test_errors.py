"""Errors of others in one line."""

import pytest

from contextlora.errors import first_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("\n  one  \ntwo", "one"),
        ("one of:\n(1) a file,\n(2) a folder\nmore", "one of: (1) a file, (2) a folder"),
        ("one of:", "one of"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("x" * 1000, "x" * 38 + "..." + "x" * 38),
        ("word " * 1000, "word " * 21 + "..."),
    ],
)
def test_first_line_is_a_whole_sentence(text, line):
    assert first_line(ValueError(text)) == line
