"""Backbones from outside the project: of a module that was typed, and of an installed package."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.core.config_store import ConfigStore
from programs import ROOT, SMALL

from agents import load_actor
from agents.backbones import BUILT_IN, MIXERS, mixer_entry, register_backbone
from agents.backbones.min_gru import MinGRU, MinGRUConfig
from agents.backbones.mixer import BackboneConfig
from common.errors import UserError

RUN = [*SMALL, "steps=20", "evaluation.every=0", "run_dir=run"]


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """A folder of modules; what they register is gone after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    forget("leaky")  # whoever collects doctests has imported it
    known = set(sys.modules)
    yield tmp_path
    for name in MIXERS.keys() - BUILT_IN:
        del MIXERS[name]
        ConfigStore.instance().repo.get("backbone", {}).pop(f"{name}.yaml", None)
    for name in sys.modules.keys() - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def forget(name: str) -> None:
    """Forgets a module, as a new process would not know it."""
    sys.modules.pop(name, None)
    for backbone in MIXERS.keys() - BUILT_IN:
        del MIXERS[backbone]
        ConfigStore.instance().repo.get("backbone", {}).pop(f"{backbone}.yaml", None)


def write_module(folder: Path, name: str = "mine") -> None:
    shutil.copy(ROOT / "tests/leaky.py", folder / f"{name}.py")


def install(
    folder: Path, name: str = "leaky", module: str = "mine", package: str = "leaks"
) -> None:
    """Makes a folder what pip makes of a package with an entry point."""
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        f"[decision_minrnn.backbones]\n{name} = {module}\n"
    )
    sys.path.append(str(folder))


def test_a_typed_module_trains_resumes_is_scored_and_acts(outside, call):
    write_module(outside)
    typed = ["backbone=leaky", "backbone.module=mine"]
    ended = call("train.py", *RUN, *typed, "backbone.memory=5")
    assert ended.returncode == 0, ended.stderr
    assert "leaky," in ended.stdout
    config = (outside / "run/config.json").read_text()
    assert json.loads(config)["backbone"]["memory"] == 5
    for name in ("config.json", "config.yaml"):
        assert "mine" not in (outside / "run" / name).read_text(), "no file names a module"

    # Another process knows no such backbone until the module is typed again.
    forget("mine")
    ended = call("eval.py", "run=run", "episodes=2")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "backbone 'leaky' is not known here" in ended.stderr
    assert "backbone.module=MODULE" in ended.stderr and "mine" not in sys.modules
    with pytest.raises(UserError, match="importing that module first"):
        load_actor("run")

    ended = call("eval.py", "run=run", "episodes=2", "backbone.module=mine")
    assert ended.returncode == 0, ended.stderr
    assert load_actor("run").act(np.zeros(11)).shape == (3,)
    ended = call("train.py", *RUN, *typed, "backbone.memory=5", "resume=true")
    assert ended.returncode == 0, ended.stderr


def test_help_names_the_key_and_the_backbone(outside, call):
    write_module(outside)
    ended = call("train.py", "--help", "backbone=leaky", "backbone.module=mine")
    assert ended.returncode == 0, ended.stderr
    assert "gru, leaky, lstm" in ended.stdout and "backbone.module=MODULE" in ended.stdout
    assert "backbone.memory=10" in ended.stdout and "forgotten all but 1/e" in ended.stdout


def test_an_installed_package_is_found_by_name(outside, call):
    write_module(outside)
    install(outside)
    assert mixer_entry("leaky")[0].__module__ == "mine"
    ended = call("train.py", *RUN, "backbone=leaky")
    assert ended.returncode == 0, ended.stderr
    forget("mine")
    ended = call("eval.py", "run=run", "episodes=2")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_a_sweep_in_other_processes_imports_the_module_too(outside, start):
    write_module(outside)
    sweep = ["-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    keys = [key for key in RUN if not key.startswith("run_dir")]
    ended = start("train.py", *keys, "backbone=leaky", "backbone.module=mine", *sweep)
    assert ended.returncode == 0, ended.stderr
    assert len(list(outside.glob("runs/*/leaky-*/scores.json"))) == 2


@pytest.mark.slow
def test_the_battery_runs_over_a_mixer_from_outside(outside, start):
    write_module(outside)
    battery = ROOT / "tests/agents/backbones/test_backbones.py"
    variables = {"PYTHONPATH": f"{ROOT}:{outside}"}
    options = [f"--rootdir={ROOT}", "-c", ROOT / "pyproject.toml", "-n", "0", "-k", "leaky"]
    ended = start("-m pytest", battery, "--backbone-module=mine", *options, variables=variables)
    assert ended.returncode == 0, ended.stdout
    assert int(ended.stdout.rpartition(" passed")[0].split()[-1]) > 20, ended.stdout


NAMED = "class Config(MinGRUConfig):\n    name: str = '{}'\n"
HEADER = """
from dataclasses import dataclass
from agents import register_backbone
from agents.backbones.min_gru import MinGRU, MinGRUConfig
"""
MODULES = {
    "nothing = 1": "backbone.module is mine, which registers no backbone; it must call",
    "import no_such_thing": "backbone.module is mine, which cannot be imported .ModuleNotFound",
    "def (": "cannot be imported .SyntaxError",
    HEADER + "@dataclass\n" + NAMED.format("min_gru") + "register_backbone(Config, MinGRU)": (
        "backbone.module is mine, and register_backbone.Config, MinGRU.: the name 'min_gru' is "
        "taken by agents.backbones.min_gru.MinGRU"
    ),
    HEADER + "register_backbone(MinGRU, MinGRUConfig)": "MinGRU is no subclass of BackboneConfig",
}


@pytest.mark.parametrize(("content", "message"), MODULES.items())
def test_a_wrong_module_is_one_sentence_before_the_data_are_read(content, message, outside, call):
    (outside / "mine.py").write_text(content)
    ended = call("train.py", "backbone=leaky", "backbone.module=mine", "dataset.id=no/such-v0")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert re.search(message, ended.stderr), ended.stderr


def test_a_module_whose_backbone_is_not_chosen_is_refused(outside, call):
    write_module(outside)
    ended = call("train.py", *RUN, "backbone.module=mine")
    assert ended.returncode == 1
    assert "backbone of this run is min_gru; add backbone=leaky." in ended.stderr
    assert not (outside / "run").exists()


def test_an_unknown_backbone_lists_those_of_the_module_and_of_packages(outside, call):
    write_module(outside, "typed_one")
    write_module(outside, "mine")
    install(outside, "other")
    ended = call("train.py", "backbone=lea", "backbone.module=typed_one")
    assert ended.returncode == 1 and "did you mean 'leaky'?" in ended.stderr
    forget("typed_one")
    ended = call("train.py", "backbone=other")  # its module registers another name
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "installed package leaks, whose module mine registers no backbone" in ended.stderr


def test_a_broken_package_stops_only_those_who_choose_it(outside, call):
    install(outside, "broken", "no_such_module")
    assert call("train.py", "--help").returncode == 0
    ended = call("train.py", "backbone=broken")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "no_such_module cannot be imported (ModuleNotFoundError" in ended.stderr


@pytest.mark.parametrize("name", ["min_gru", "leaky"])
def test_two_backbones_of_one_name_are_refused(name, outside, call):
    install(outside, "leaky")
    install(outside, name, package="second")
    ended = call("train.py")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert f"a backbone '{name}', and so does " in ended.stderr


class NoName(MinGRUConfig):
    pass


class NoDataclass(BackboneConfig):
    name = "plain"

    def __init__(self, width: int) -> None:
        self.width = width


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((NoName, MinGRU), "NoName has no name of its own"),
        ((NoDataclass, MinGRU), "NoDataclass is no dataclass whose keys have a default each"),
        ((MinGRUConfig(), MinGRU), "is no subclass of BackboneConfig"),
        ((MinGRUConfig, object), "object is no subclass of Mixer"),
    ],
)
def test_classes_that_are_not_of_the_contract_are_one_sentence(classes, message):
    with pytest.raises(UserError, match=message):
        register_backbone(*classes)
    assert MIXERS.keys() == BUILT_IN


def test_a_cell_that_is_run_again_replaces_its_own_classes(outside):
    write_module(outside)
    sys.path.append(str(outside))
    first = mixer_entry_of("mine")
    del sys.modules["mine"]
    assert mixer_entry_of("mine") is not first


def mixer_entry_of(module: str) -> type:
    __import__(module)
    return mixer_entry("leaky")[1]
