"""The three descriptions of the environment agree: pyproject.toml, constraints.txt and environment.yml."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
CONSTRAINTS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def version(text):
    return tuple(int(number) for number in text.split("."))


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_the_known_good_version_satisfies_the_requirement(requirement):
    library, bounds = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
    known = version(CONSTRAINTS[library])
    for operator, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
        assert known >= version(bound) if operator == ">=" else known < version(bound)
    assert re.fullmatch(r">=[\d.]+(,<[\d.]+)?", bounds)


def test_conda_installs_the_same_as_make_setup():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    # Requirements and versions stay where they are written: pip reads them from the project.
    assert pip == {"pip": ["-c constraints.txt", "-e .[dev]"]}
    makefile = (ROOT / "Makefile").read_text()
    assert "--constraint constraints.txt --editable '.[dev]'" in makefile


def test_every_library_that_the_package_imports_is_required():

    modules = (ROOT / "src").rglob("*.py")
    nodes = [node for path in modules for node in ast.walk(ast.parse(path.read_text()))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    libraries = {module.split(".")[0] for module in imported} - sys.stdlib_module_names - {"contextlora"}
    distributions = {"PIL": "pillow", "yaml": "pyyaml"}
    required = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert {distributions.get(library, library) for library in libraries} - required == set()


def test_the_bundled_backbone_and_the_schemas_are_part_of_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert data == {"contextlora.backbones": ["bundled/**"], "contextlora.tasks": ["schema/*.json"]}
