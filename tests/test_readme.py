"""The README's commands are valid, and its two first ones are what .ci/run runs."""

import re
import shlex
from pathlib import Path

import pytest

from configs.schema import register

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip() and not line.strip().startswith("#")
]
ENTRY = [c for c in COMMANDS if re.search(r"python (train|eval)\.py", c)]
MODULES = [c for c in COMMANDS if "python -m envs." in c]


def test_the_readme_has_commands():
    assert len(ENTRY) >= 5 and len(MODULES) >= 1


@pytest.mark.parametrize("command", ENTRY)
def test_a_command_of_the_readme_composes(command):
    register()
    script, arguments = re.search(r"(train|eval)\.py(.*)", command.split("#")[0]).groups()
    overrides = [a for a in shlex.split(arguments) if not a.startswith("-")]
    command.check(overrides, script)


def test_the_setup_commands_are_those_of_the_check():
    assert 'pip install -e ".[test]"' in README
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip install --quiet -e ".[test]"' in ci
    assert "python -m pytest" in README and "python -m pytest" in ci
