"""README.md and docs/: every command is one that its program accepts, and the Python runs."""

import argparse
import re
import runpy
import shlex
import sys
from shutil import copytree

import numpy as np
import pytest
from programs import ROOT

from common import arguments
from configs.launch import command
from configs.schema import register

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BASH = [
    line.strip()
    for text in PAGES.values()
    for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in block.splitlines()
    if line.strip() and not line.strip().startswith("#")
]
# Commands that are not started here, and why.
UNTESTED = {
    "pip install": "installs packages; the setup's own is what the check runs",
    "python train.py backbone.module=": "tests/test_examples.py trains it",
    "python eval.py backbone.module=": "tests/configs/test_typed.py evaluates another",
    "python -m pytest": "tests/test_examples.py runs the battery",
    "mkdocs": "tests/test_site.py builds the pages",
    "npm": "the project's check builds and tests the page in demo/",
    "python -m http.server": "serves until it is stopped",
}
SETUP = [line for line in BASH if line.startswith("python3 -m venv")]
# Commands of tables and text stand between backticks.
PROGRAMS = r"(?:train\.py|eval\.py|compare\.py|-m envs|-m agents|benchmarks/)"
INLINE = [
    found for text in PAGES.values() for found in re.findall(rf"`(python {PROGRAMS}[^`]*)`", text)
]
REST = [
    part
    for line in dict.fromkeys([*BASH, *INLINE])
    if line not in SETUP
    for part in line.split(" && ")
    if not part.startswith(tuple(UNTESTED))
]
PYTHON = [
    pytest.param(page, block, id=f"{page}-{i}")
    for page, text in PAGES.items()
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
]
# What takes minutes in the Python of the pages, and what stands in its place here.
USUAL = '"hopper-medium-expert", steps=300'
SMALL = 'DatasetConfig("builtin", "builtin/hopper/medium-expert-v1", steps=1500), steps=5'


class Parsed(BaseException):
    """The program has read its arguments and would begin its work."""


@pytest.fixture
def only_parsed(monkeypatch):
    """Programs stop once they have accepted their command line."""

    def then_stop(parse):
        def parse_and_stop(*arguments, **keywords):
            parse(*arguments, **keywords)
            raise Parsed

        return parse_and_stop

    monkeypatch.setattr(arguments, "parse_arguments", then_stop(arguments.parse_arguments))
    parser = argparse.ArgumentParser
    monkeypatch.setattr(parser, "parse_args", then_stop(parser.parse_args))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # as `python benchmarks/scan.py` does


def start(command_line: str, monkeypatch) -> None:
    """Starts a command of a page in this process, up to its work."""
    words = shlex.split(command_line, comments=True)
    if words[0] == "torchrun":
        words = ["python", *words[words.index("train.py") :]]
    assert words[0] == "python", command_line
    if words[1] in ("train.py", "eval.py"):
        register()
        overrides = [word for word in words[2:] if not word.startswith("-")]
        command.check(overrides, words[1].removesuffix(".py"))
        raise Parsed
    module = words[1] == "-m"
    program, rest = words[1 + module], words[2 + module :]
    monkeypatch.setattr(sys, "argv", [program, *rest])
    if module:
        runpy.run_module(program, run_name="__main__")
    else:
        runpy.run_path(str(ROOT / program), run_name="__main__")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("command_line", REST)
def test_a_command_of_the_pages_is_accepted(command_line, only_parsed, monkeypatch):
    with pytest.raises(Parsed):
        start(command_line, monkeypatch)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize(
    "command_line",
    ["python -m envs.data.inspect no_such=1", "python compare.py --no-such", "python train.py x=1"],
)
def test_a_wrong_command_would_be_noticed(command_line, only_parsed, monkeypatch):
    with pytest.raises((SystemExit, command.UserError)):
        start(command_line, monkeypatch)


def test_the_pages_show_every_kind_of_command():
    text = "\n".join(REST)
    for kind in ("train.py", "eval.py", "compare.py", "torchrun", "python -m envs.", "benchmarks/"):
        assert kind in text


def test_the_setup_commands_are_those_of_the_check():
    main, tests = SETUP
    check = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert main.endswith("pip install -c constraints.txt -e . && python train.py")
    assert tests.endswith('pip install -c constraints.txt -e ".[test]" && python -m pytest')
    assert '${CONSTRAINTS--c constraints.txt} -e ".[test]"' in check
    assert check.rstrip().endswith("python -m pytest")


def test_the_readme_is_short():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 130 and len(PAGES["README.md"].split()) <= 1200
    assert sum(line.count("![") for line in lines) >= 3


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if not re.match(r"\w+:", target):
            assert ((ROOT / page).parent / target).exists(), target


@pytest.fixture
def there(tmp_path, monkeypatch, shared_store):
    """A folder as the pages expect it: the policies to try, one of them exported."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_store))
    copytree(ROOT / "pretrained", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_the_python_of_the_pages_runs_as_it_stands(page, block, there, monkeypatch):
    if "policy.npz" in block or "policy.onnx" in block:
        from agents.export.__main__ import export

        export("pretrained/hopper", f"robot/{re.findall('policy.(?:npz|onnx)', block)[0]}")
        monkeypatch.chdir(there / "robot")
        monkeypatch.syspath_prepend(str(there / "robot"))
    block = block.replace(USUAL, SMALL)
    names = {"observation": np.zeros(11, np.float32)}
    exec("from envs.data.sources import DatasetConfig\n" * (SMALL in block) + block, names)
    if "env.step" in block:
        assert names["done"]
    if "action" in names:
        assert np.abs(names["action"]).max() <= 1
