"""Errors of others in one line."""

from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[Errno 2] No such file or directory: '/a/b'", "[Errno 2] No such file or directory"),
        ('no node in "/a/b", line 2', "no node, line 2"),
        ("It looks like the file at '/a/b/config.json' is no JSON", "It looks like the file is no JSON"),
        ("not /a/bc or /x/a/b", "not /a/bc or /x/a/b"),
    ],
)
def test_a_path_that_is_said_already_is_left_out(text, line):
    assert first_line(ValueError(text), but=Path("/a/b")) == line


def test_an_error_of_yaml_says_where():
    with pytest.raises(yaml.YAMLError) as caught:
        yaml.safe_load("a: 1\nb: [")
    assert first_line(caught.value).startswith("line 2: ")
