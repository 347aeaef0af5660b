"""The house rules that can be checked by reading: who imports whom, file and function length, nothing machine-bound.

Each test reads all files and names every place that breaks its rule.
"""

import ast
import re
import sys
from collections import defaultdict
from functools import cache
from keyword import iskeyword
from pathlib import Path

import pytest

from contextlora.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "contextlora"
# From the bottom up; a part imports only from layers below its own and from itself.
LAYERS = (
    ("errors", "files", "signals", "trees"),
    ("limits", "plain_values", "run_places", "process_identity"),
    ("settings", "graph", "runs", "tracking"),
    ("gear/planning",),
    ("gear/simulation",),
    ("tasks", "adapters"),
    ("backbones",),
    ("methods",),
    ("config",),
    ("evaluation",),
    ("training", "serving"),
    ("gear/execution", "gear/reports"),
    ("gear/processes",),
    ("assembly",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
ONLY_IMPORTERS = {"omegaconf": {"config"}, "wandb": {"tracking"}, "peft": {"adapters"}}
PURE = ("graph", "gear/planning", "gear/simulation")
PURE_IMPORTS = {"contextlora", "networkx", *sys.stdlib_module_names}
# Their import must stay cheap: `--help` and a config error answer in under a second.
LIGHT = {
    *("errors", "files", "signals", "limits", "settings", "config", "runs", "run_places", "tracking"),
    *("cli", "__main__"),
}
HEAVY = {"torch", "lightning", "transformers", "peft", "wandb", "torchmetrics", "matplotlib"}
PICKLERS = {"pickle", "_pickle", "pickletools", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
PICKLING = re.compile(r"(all_)?gather_object|\w+_object_list|allow_pickle|(torch|numpy|np)\.(load|save)")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40

MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON_FILES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".ipynb", ".json", ".cfg", ""}
# This file spells what it looks for, and a worktree's .git is a file with a path.
SKIPPED = {".git", Path(__file__).name}
TEXT_FILES = [
    path
    for folder in ("src", "configs", "docs", "tests", "notebooks", ".ci", ".")
    for path in sorted((ROOT / folder).glob("*" if folder == "." else "**/*"))
    if path.is_file() and path.suffix in TEXT_SUFFIXES and path.name not in SKIPPED
    if not any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)
]

# Places of one machine, and hosts or options that choose a package registry.
MACHINE_BOUND = re.compile(
    r"(?<![\w.:/-])/(?:home|root|Users|work|opt|mnt|tmp|farm)/\w"
    r"|pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.org|--(?:extra-)?index-url|--find-links"
)


def name(path):
    return str(path.relative_to(ROOT))


def part(path):
    """What a module belongs to: a file or folder of the package, or one of gear."""
    first, *below = path.relative_to(PACKAGE).with_suffix("").parts
    return "/".join([first, *below[:1]]) if first == "gear" and below != ["__init__"] else first


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree, path):
    """(module, names) of every import in a syntax tree, relative ones resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["contextlora", *path.relative_to(PACKAGE).parts[:-1]] if node.level else []
            above = package[: len(package) - node.level + 1]
            yield ".".join([*above, *filter(None, [node.module])]), [alias.name for alias in node.names]


def imported_parts(tree, path):
    """Parts of this package that a module imports."""
    for module, names in imports(tree, path):
        root, *below = module.split(".")
        if root != "contextlora":
            continue
        for full in [below] if below not in ([], ["gear"]) else [[*below, name] for name in names]:
            yield "/".join(full[:2] if full[0] == "gear" else full[:1])


def imported_packages(tree, path):
    return {module.split(".")[0] for module, _ in imports(tree, path)}


def pickling(tree):
    """Names in a syntax tree that stand for pickling."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used = [node.attr, f"{ast.unparse(node.value)}.{node.attr}"]
        elif isinstance(node, ast.ImportFrom):
            used = [full for alias in node.names for full in (alias.name, f"{node.module}.{alias.name}")]
        elif isinstance(node, ast.Call):
            used = [keyword.arg or "" for keyword in node.keywords]
        else:
            used = []
        yield from filter(PICKLING.fullmatch, used)


def refuse(broken):
    broken = list(broken)
    assert not broken, "\n".join(["", *broken])


def loaded(path):
    """A module without its functions and classes: what runs when it is imported."""
    return ast.Module([node for node in parse(path).body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])


def test_imports_point_one_way():
    broken = []
    for path in MODULES:
        here = part(path)
        if here in ("__init__", "gear"):
            broken += [f"{name(path)} imports {other}" for other in imported_parts(loaded(path), path)]
        elif here not in LEVEL:
            broken.append(f"{here} has no place in LAYERS")
        else:
            others = {other for other in imported_parts(parse(path), path) if other != here}
            broken += [f"{name(path)} imports {o}" for o in sorted(others) if LEVEL.get(o, 99) >= LEVEL[here]]
    refuse(broken)


def test_only_one_part_imports_each_of_these_libraries():
    broken = []
    for path in MODULES:
        used = imported_packages(parse(path), path)
        broken += [
            f"{name(path)}: {lib}" for lib, who in ONLY_IMPORTERS.items() if lib in used and part(path) not in who
        ]
    refuse(broken)


def test_pure_packages_import_only_the_standard_library_and_networkx():
    foreign = {name(p): imported_packages(parse(p), p) - PURE_IMPORTS for p in MODULES if part(p) in PURE}
    refuse(f"{where}: {packages}" for where, packages in foreign.items() if packages)


def test_light_modules_import_nothing_heavy_when_they_are_loaded():
    heavy = {name(p): imported_packages(loaded(p), p) & HEAVY for p in MODULES if part(p) in LIGHT}
    refuse(f"{where}: {packages}" for where, packages in heavy.items() if packages)


def test_nothing_is_pickled():
    """What reads pickles runs code of whoever wrote them; processes, runs and models come from others."""
    broken = []
    for path in MODULES:
        broken += [f"{name(path)} imports {lib}" for lib in sorted(imported_packages(parse(path), path) & PICKLERS)]
        broken += [f"{name(path)}: {call}" for call in pickling(parse(path))]
    refuse(broken)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "dist.all_gather_object(found, mine)",
        "from torch.distributed import broadcast_object_list as share",
        "torch.load(path, weights_only=True)",
        "from torch import load",
        "read = torch.save",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_pickling_is_found(code):
    tree = ast.parse(code)
    assert imported_packages(tree, PACKAGE / "files.py") & PICKLERS or list(pickling(tree))


def test_components_take_plain_values_not_the_whole_configuration():
    components = [
        p for p in MODULES if LEVEL.get(part(p), 0) < LEVEL["assembly"] and part(p) not in ("settings", "config")
    ]
    refuse([name(p) for p in components if "RunConfig" in {n for _, names in imports(parse(p), p) for n in names}])


def test_every_command_has_the_file_of_its_name():
    expected = {command.replace("-", "_") + "_" * iskeyword(command) for command in COMMANDS}
    files = {path.stem: path for path in (PACKAGE / "commands").glob("*.py") if path.stem != "__init__"}
    assert set(files) == expected
    functions = {stem: [getattr(node, "name", "") for node in parse(path).body] for stem, path in files.items()}
    refuse([stem for stem in expected if stem not in functions[stem]])


def test_no_two_classes_have_the_same_name():
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(name(path))
    refuse(f"{cls}: {where}" for cls, where in places.items() if len(where) > 1)


def test_files_are_short():
    lines = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON_FILES}
    refuse(f"{where}: {count}" for where, count in lines.items() if count > MAX_FILE_LINES)


def test_functions_are_short():
    """Docstrings do not count."""
    long = {}
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                documented = (
                    isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(node.body) > 1
                )
                start = node.body[1].lineno if documented else node.lineno
                if (lines := node.end_lineno - start + 1) >= MAX_FUNCTION_LINES:
                    long[f"{name(path)}: {node.name}"] = lines
    refuse(f"{where}: {lines}" for where, lines in long.items())


def test_nothing_is_bound_to_one_machine_or_registry():
    found = {name(path): MACHINE_BOUND.findall(path.read_text(encoding="utf-8")) for path in TEXT_FILES}
    refuse(f"{where}: {texts}" for where, texts in found.items() if texts)


def test_files_have_names_that_say_what_is_in_them():
    vague = {"utils", "helpers", "manager", "misc", "common"}
    refuse([name(path) for path in MODULES if path.stem in vague or path.parent.name in vague])
