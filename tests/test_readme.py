"""Every command of the README is one that its program accepts, and its Python runs."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from agents.backbones.min_gru import MinGRUConfig
from agents.checkpoint import RunDescription, save_description, save_policy
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common import arguments
from configs.launch import command
from configs.schema import register

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip() and not line.strip().startswith("#")
]
SETUP = [c for c in COMMANDS if c.startswith("python3 -m venv")]
# Commands of tables and text stand between backticks.
INLINE = re.findall(r"`(python (?:-m )?(?:envs|benchmarks|compare)[^`]*)`", README)
REST = [c for c in dict.fromkeys([*COMMANDS, *INLINE]) if c not in SETUP]


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
    """Starts a command of the README in this process, up to its work."""
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
def test_a_command_of_the_readme_is_accepted(command_line, only_parsed, monkeypatch):
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


def test_the_readme_shows_every_kind_of_command():
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


def test_the_python_of_the_readme_runs_as_it_stands(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    (run,) = re.findall(r"runs/[\w./-]+", blocks[0])
    backbone = MinGRUConfig(d_model=16, n_layer=1)
    policy = ReturnConditionedPolicy(PolicyConfig(), backbone, observation_dim=11, action_dim=3)
    description = RunDescription({}, {"rollout": "carried", "context_length": 20})
    (tmp_path / run).mkdir(parents=True)
    save_description(tmp_path / run, policy, backbone, description)
    save_policy(tmp_path / run, policy, 1)
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        names: dict = {}
        exec(block, names)
        assert names["terminated"], "an untrained Hopper falls"
