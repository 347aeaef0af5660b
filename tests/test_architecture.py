"""The house rules that can be checked by reading: who imports whom, file and function length, nothing machine-bound."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "contextlora"
# From the bottom up; a part imports only from layers below its own and from itself.
LAYERS = (
    ("errors",),
    ("settings", "graph"),
    ("config", "gear", "runs", "tracking"),
    ("tasks", "adapters"),
    ("backbones", "methods"),
    ("training", "evaluation"),
    ("assembly", "workloads"),
    ("ranks",),
    ("workflows", "planning", "preparation"),
    ("benchmarks",),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, layer in enumerate(LAYERS) for part in layer}
ONLY_IMPORTERS = {"omegaconf": {"config"}, "wandb": {"tracking"}, "peft": {"adapters"}}
# What runs plans over processes touches torch; the rest of gear is pure.
IMPURE = {
    f"gear/{name}.py" for name in ("profile", "executor", "pipeline_executor", "groups", "mail", "strategy", "peers")
}
PURE_IMPORTS = {"contextlora", "networkx", *sys.stdlib_module_names}
# Their import must stay cheap: `--help` and a config error answer in under a second.
LIGHT = {"errors", "settings", "config", "runs", "tracking", "cli", "__main__"}
HEAVY = {"torch", "lightning", "transformers", "peft", "wandb", "torchmetrics", "matplotlib"}
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
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
        if root == "contextlora":
            yield from below[:1] or names


def imported_packages(tree, path):
    return {module.split(".")[0] for module, _ in imports(tree, path)}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_one_way(path):
    here = part(path)
    if here == "__init__":
        assert list(imported_parts(parse(path), path)) == []
        return
    assert here in LEVEL, f"give {here} a place in LAYERS"
    above = {other for other in imported_parts(parse(path), path) if other != here and LEVEL[other] >= LEVEL[here]}
    assert above == set(), f"{here} is not above {above}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_one_part_imports_each_of_these_libraries(path):
    used = imported_packages(parse(path), path)
    assert {
        library for library, parts in ONLY_IMPORTERS.items() if library in used and part(path) not in parts
    } == set()


@pytest.mark.parametrize("path", [path for path in MODULES if part(path) in ("graph", "gear")], ids=name)
def test_pure_packages_import_only_the_standard_library_and_networkx(path):
    if str(path.relative_to(PACKAGE)) not in IMPURE:
        assert imported_packages(parse(path), path) - PURE_IMPORTS == set()


@pytest.mark.parametrize("path", [path for path in MODULES if part(path) in LIGHT], ids=name)
def test_light_modules_import_nothing_heavy_when_they_are_loaded(path):
    tree = parse(path)
    top = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
    assert imported_packages(top, path) & HEAVY == set()


@pytest.mark.parametrize("path", [path for path in MODULES if LEVEL.get(part(path), 0) < LEVEL["assembly"]], ids=name)
def test_components_take_plain_values_not_the_whole_configuration(path):
    if part(path) not in ("settings", "config"):
        assert "RunConfig" not in {n for _, names in imports(parse(path), path) for n in names}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_functions_are_short(path):
    """Docstrings do not count."""
    long = {}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(node.body) > 1
            start = node.body[1].lineno if documented else node.lineno
            if (lines := node.end_lineno - start + 1) >= MAX_FUNCTION_LINES:
                long[node.name] = lines
    assert long == {}


@pytest.mark.parametrize("path", TEXT_FILES, ids=name)
def test_nothing_is_bound_to_one_machine_or_registry(path):
    assert MACHINE_BOUND.findall(path.read_text(encoding="utf-8")) == []


def test_files_have_names_that_say_what_is_in_them():
    vague = {"utils", "helpers", "manager", "misc", "common"}
    assert [name(path) for path in MODULES if path.stem in vague or path.parent.name in vague] == []
