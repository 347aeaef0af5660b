"""The command line: arguments become a RunConfig and one call of a command, errors become a line and an exit code.

Exit codes: 0 done, 1 a failure that is not the user's, 2 a mistake the user can mend, 130 Ctrl-C,
143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from keyword import iskeyword
from pathlib import Path

from contextlora.backbones.published import PUBLISHED
from contextlora.config import describe_settings, load_config
from contextlora.errors import UserError, cut, explained, tail
from contextlora.runs import RunFolder, find_runs, latest_run, unreadable_runs
from contextlora.signals import Terminated, ending_in_order
from contextlora.tasks.importers import IMPORTERS


@dataclass(frozen=True)
class Command:
    """What a command takes: the configuration, a run (which one by default), or both; or arguments of its own.

    These are named as argparse does, with their help; a name that ends in + takes several values.
    """

    text: str
    settings: bool = True
    run: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)


COMMANDS = {
    "train": Command("train a task set with a method, evaluate it and print the results"),
    "evaluate": Command("evaluate a finished run again, with its own settings unless others are given", run="latest"),
    "compare": Command("compare the finished runs of a task set over methods and seeds"),
    "ask": Command("answer one question with a trained run, and those that its answer depends on", run="latest"),
    "export": Command("write each trained task of a run as an ordinary PEFT adapter", run="latest"),
    "resume": Command("continue a run that did not finish, to the same weights", settings=False, run="unfinished"),
    "clean-runs": Command("show what takes space among the runs; --yes removes what no command needs any more"),
    "plan": Command("plan training over the devices of gear.devices, and say what it would take"),
    "profile": Command("measure this machine, or all processes and their links, into a device catalogue"),
    "model": Command("bring a real model here", settings=False, arguments={"name": f"one of {', '.join(PUBLISHED)}"}),
    "import": Command(
        "make a task set of tables",
        settings=False,
        arguments={
            "mapping": f"a mapping file (docs/importing.md), or one of {', '.join(IMPORTERS)}",
            "source+": "CSV, TSV, JSON, JSONL or Parquet files, a folder of them, saved datasets, or hub:owner/name",
            "--to": "folder of the task set (default: data/<its name>)",
        },
    ),
    "new-taskset": Command(
        "write a small task set to start your own from, with every key explained",
        settings=False,
        arguments={"name": "its folder"},
    ),
    "data": Command("build a task set"),
    "data-check": Command("probe a task set for shortcuts, and explain what is found; a shipped set must have none"),
    "backbone": Command("rebuild the bundled backbone from scratch"),
    "bench": Command("measure time, memory and accuracy of the default command"),
}

SWITCHES = {  # of commands that take settings
    "data": ("--stats", "also show options, baselines, shared scenes, and tokens under the model"),
    "train": ("--dry-run", "show the plan and what it costs, and stop"),
    "compare": (
        "--print-jobs",
        "print the commands of its runs that have not finished, three seeds of each, and stop",
    ),
    "export": ("--merge", "also write each task as a whole checkpoint, the adapter merged into the base's weights"),
    "clean-runs": ("--yes", "remove it; only shows otherwise"),
    "data-check": ("--strict", "fail where something is found in a set of your own too"),
}

USAGE = """\
settings:
  taskset=iov method=joint model=bundled   choose a file of configs/<group>; a task set or a model may also be a folder,
                                           a model a hub id (owner/name)
  experiment=NAME                          merge configs/experiment/NAME.yaml
  section.key=value                        set one value; the strongest

All keys with their defaults, from which files in configs/ may deviate (`contextlora train --dry-run` shows what holds):
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # Where a terminal or pipe has no such letter, its code is better than no line. (None: closed by the caller.)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = argparse.Namespace(debug=False)  # until the arguments are read, which a signal may break off
    with ending_in_order():
        return _run(sys.argv[1:] if arguments is None else arguments, options)


def _run(arguments: Sequence[str], options: argparse.Namespace) -> int:
    try:
        settings = _parse(arguments, options)
        _call_command(options, settings)
        return 0
    except Terminated as error:
        return _report(error, str(error), error.exit_code, options.debug)
    except KeyboardInterrupt as error:
        return _report(error, "interrupted", 130, options.debug)
    except Exception as error:
        if known := explained(error):
            return _report(error, *known, options.debug)
        # Nobody expected this one: its traceback is what a bug report needs.
        return _report(error, "this is probably a bug in contextlora", 1, debug=True)


def _parse(arguments: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Fills in the options and returns the settings."""
    parser = argparse.ArgumentParser(
        prog="contextlora",
        description="Train one language model on many related tasks, guided by a task graph.",
        epilog="`contextlora COMMAND --help` explains a command; train's lists every setting.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    settings_help = USAGE + "\n".join(_settings_help())
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.text,
            description=f"{command.text[0].upper()}{command.text[1:]}.",
            epilog=settings_help if command.settings else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,  # the tables are laid out already
        )
        if name in SWITCHES:
            sub.add_argument(SWITCHES[name][0], action="store_true", help=SWITCHES[name][1])
        _add_own(sub, command.arguments)
        if command.run:
            default = {"latest": "runs/latest", "unfinished": "the newest unfinished one"}[command.run]
            sub.add_argument("--run", metavar="FOLDER", help=f"the run (default: {default})")
        if name == "resume":
            sub.add_argument("--devices", metavar="N", type=int, help="devices of this machine (default: as before)")
        if name == "ask":
            _add_question(sub)
        if command.settings:
            sub.add_argument("--config-dir", metavar="FOLDER", type=Path, help="default: configs/ of the repository")
            sub.add_argument("settings", nargs="*", metavar="key=value", help="settings, see below")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # argparse leaves over the settings that come after an option.
    options, rest = parser.parse_known_args(arguments, options)
    unknown = [text for text in rest if text.startswith("-") or not COMMANDS[options.command].settings]
    if unknown:
        what = cut(" ".join(unknown))
        parser.error(f"{options.command} does not take {what}; see contextlora {options.command} --help")
    return [*getattr(options, "settings", []), *rest]


def _add_question(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="whose question it is")
    parser.add_argument("--question", metavar="TEXT", required=True, help="as the task set's items ask it")
    parser.add_argument("--option", metavar="WORD", action="append", default=[], help="to choose from; give each")
    parser.add_argument("--image", metavar="FILE", help="what the question is about")
    parser.add_argument("--image-text", metavar="TEXT", help="what the image shows, for models that cannot see")
    parser.add_argument(
        "--prerequisite",
        metavar="TASK=ANSWER",
        action="append",
        default=[],
        help='what the answer depends on; where it is not known its question: TASK={"question": ..., "options": [...]}',
    )


def _add_own(parser: argparse.ArgumentParser, arguments: Mapping[str, str]) -> None:
    for name, text in arguments.items():
        metavar, nargs = name.strip("-+").upper(), "+" if name.endswith("+") else None
        parser.add_argument(name.rstrip("+"), metavar=metavar, help=text, nargs=nargs)


def _settings_help() -> Iterator[str]:
    width = min(shutil.get_terminal_size((120, 24)).columns, 140)
    for key, default, text in describe_settings():
        if key.endswith("."):
            yield f"\n  {key[:-1]}: {default}"
            continue
        head = f"    {key:<36} {default:<16} "
        # Later lines begin below the text: 58 columns are the width of the head.
        yield textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * 58)


def _call_command(options: argparse.Namespace, settings: list[str]) -> None:
    command = COMMANDS[options.command]
    config_dir = getattr(options, "config_dir", None)
    run = None
    if command.run:
        # The run's own settings say which other keys there are.
        where = load_config([text for text in settings if text.startswith("runs_dir=")], config_dir).runs_dir
        run = RunFolder.open(options.run) if options.run else _default_run(command.run, where)
    # A mistake in the settings is found before the import below, which takes seconds where it brings torch.
    config = load_config(settings, config_dir, saved=run.config_file if run else None)

    name = options.command.replace("-", "_")
    name += "_" if iskeyword(name) else ""
    function = getattr(import_module(f"contextlora.commands.{name}"), name)
    if command.arguments:
        function(**{key: getattr(options, key) for key in (name.strip("-+") for name in command.arguments)})
    elif options.command == "compare" and options.print_jobs:
        import_module(function.__module__).print_jobs(config, settings, config_dir)
    elif options.command == "ask":
        question = {"question": options.question, "options": options.option}
        question |= {"image": options.image, "image_text": options.image_text}
        function(config, run, options.task, question, options.prerequisite)
    elif options.command == "resume":
        function(run, devices=options.devices)
    else:
        switch = SWITCHES.get(options.command, ("",))[0].strip("-").replace("-", "_")
        given = {switch: getattr(options, switch)} if switch and options.command != "compare" else {}
        function(*([config] if command.settings else []), *([run] if run else []), **given)


def _default_run(which: str, runs_dir: str) -> RunFolder:
    if which == "latest":
        return latest_run(runs_dir)
    for line in unreadable_runs(runs_dir):
        print(f"contextlora: {line}", file=sys.stderr)
    unfinished = find_runs(runs_dir, finished=False)
    if not unfinished:
        raise UserError(f"no unfinished run in {tail(runs_dir)}; name another with --run FOLDER (make: RUN=FOLDER)")
    return unfinished[-1]


def _report(error: BaseException, text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    # What ends a program may end its terminal first.
    with suppress(OSError):
        notes, break_ = getattr(error, "__notes__", []), "; " if isinstance(error, Terminated) else "\n"
        print(break_.join([f"contextlora: {text}", *notes]), file=sys.stderr, flush=True)
    return code
