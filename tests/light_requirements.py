"""Prints the packages that the tests in light.txt need: the project's without torch, and pytest's."""

import tomllib
from pathlib import Path

HEAVY = ("torch", "transformers")
ONLY_LINT = ("ruff", "mypy", "types-")

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
    if not requirement.startswith(HEAVY + ONLY_LINT):
        print(requirement)
