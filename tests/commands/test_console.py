"""What is printed: names and figures as they are, whatever stands behind the output."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from contextlora.commands import CONSOLE, LastingConsole
from contextlora.evaluation.report import as_rich, print_in_full

SRC = Path(__file__).parents[2] / "src"
LONG = "a_task_whose_name_is_long_" * 8


def printed(*things):
    console = LastingConsole(
        file=io.StringIO(), width=40, markup=CONSOLE._markup, emoji=CONSOLE._emoji, soft_wrap=CONSOLE.soft_wrap
    )
    for thing in things:
        print_in_full(console, thing) if isinstance(thing, Table) else console.print(thing)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("name", [LONG, "[red]", "[a]b[/a]", ":smile:", "[/]", "with some words " * 9, "路线"])
def test_names_and_figures_come_out_whole(name):
    row = [name, "100.0", f"31.2 ±{name}"]
    title, *_, line, blank = printed(as_rich(f"{name}, seed 1", ["task", name, "b"], [row]))
    assert (title, blank.strip()) == (f"{name}, seed 1".rstrip(), "")
    assert " ".join(line.split()) == " ".join(" ".join(row).split())
    assert printed(f"run: {name}") == [f"run: {name}"]


def run(code, closed=False, **variables):
    """(exit code, stdout, stderr) of some code; stdout may be a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; from contextlora.cli import main; {code}"],
        env=os.environ | {"PYTHONPATH": str(SRC)} | variables,
        stdout=writing if closed else subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize("then", ["CONSOLE.print('c')", "print('c', flush=True)"])
def test_a_reader_that_leaves_ends_the_lines_and_not_the_work(then):
    code = f"from contextlora.commands import CONSOLE; import os; CONSOLE.print('a'); {then}; os.write(2, b'done')"
    assert run(code, closed=True) == (0, None, b"done")


@pytest.mark.parametrize("arguments", [["data", "--help"], ["train", "--help"], ["--help"]])
def test_help_into_a_closed_pipe_is_quiet(arguments):
    assert run(f"main({arguments})", closed=True) == (0, None, b"")


def stub(words):
    return (
        "from types import ModuleType; from contextlora.commands import CONSOLE; found = ModuleType('found'); "
        f"found.data = lambda config, stats: CONSOLE.print({words!r}); "
        "sys.modules['contextlora.commands.data'] = found; sys.exit(main(['data']))"
    )


@pytest.mark.parametrize(
    ("encoding", "words", "shown"),
    [
        ("ascii", "路 1.5", rb"\u8def 1.5"),
        ("latin-1", "路 é", b"\\u8def \xe9"),
        ("utf-8", "路 é", "路 é".encode()),
        ("utf-8", "a\udcff", rb"a\udcff"),  # a file name that is no text
    ],
)
def test_letters_that_the_terminal_lacks_are_replaced(encoding, words, shown):
    assert run(stub(words), PYTHONIOENCODING=encoding) == (0, shown + b"\n", b"")
