"""The examples run as they stand; what takes minutes is made small."""

import os
import runpy

import numpy as np
import pytest
from programs import ROOT, SMALL

from common.errors import UserError
from envs.simulation.video import offscreen_backend

EXAMPLES = ROOT / "examples"
# What the notebook says first, and what a test puts in its place.
USUAL = 'data, steps, episodes, horizon = "hopper-medium-expert", 600, 20, 400'
SMALL_START = """from envs.data.sources import DatasetConfig
data = DatasetConfig("builtin", "builtin/hopper/medium-expert-v1", steps=1500)
steps, episodes, horizon = 20, 2, 20"""


def load(name: str):
    """Returns the `main` of an example."""
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_examples_are_short():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path


def test_act(capsys):
    assert load("act.py")() > 3000
    assert "hopper: 3," in capsys.readouterr().out


def test_evaluate_in_your_loop():
    returns = load("evaluate_in_your_loop.py")(steps=500)
    assert len(returns) == 8 and returns.min() > 1000


def test_own_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = load("own_data.py")(steps=5)
    assert run.folder.is_dir() and np.isfinite(run.scores[0].return_mean)


def test_new_mixer(call):
    keys = [*SMALL, "backbone.module=examples.new_mixer", "backbone=leaky_integrator"]
    trained = call("train.py", *keys, "steps=20", "run_dir=run")
    assert trained.returncode == 0, trained.stderr
    assert "leaky_integrator" in trained.stdout and "normalised score" in trained.stdout


@pytest.mark.slow
def test_new_mixer_passes_the_battery(start):
    battery = ROOT / "tests/agents/backbones/test_backbones.py"
    module = "--backbone-module=examples.new_mixer"
    found = start("-m pytest", battery, module, "-k", "leaky_integrator", "-n0", "-m", "not slow")
    assert found.returncode == 0, found.stdout
    assert "passed" in found.stdout


def test_the_notebook(tmp_path, monkeypatch, shared_store):
    nbformat = pytest.importorskip("nbformat", reason="the extra test has it")
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    first = notebook.cells[1]
    assert USUAL in first.source
    first.source = first.source.replace(USUAL, SMALL_START)
    try:
        offscreen_backend()
    except UserError:
        del notebook.cells[-1]  # the video
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_store))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", ()))
    assert text.count("asked for") == 5
    films = list(tmp_path.glob("runs/quickstart.mp4"))
    assert len(films) == any("Video(" in cell.source for cell in notebook.cells)
