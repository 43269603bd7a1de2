"""Environments of packages that must be imported first: only where the user names the module."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from programs import SMALL

from common.errors import UserError
from envs.data.sources import load_named
from envs.data.store import store_episodes
from envs.simulation.simulators import make_environment

PACKAGE = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

class Swing(PendulumEnv):
    pass

gymnasium.register("Swing-v0", Swing, max_episode_steps=20, kwargs={"g": 9.0})
"""
TYPED = "swinging:Swing-v0"


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """A package in the working directory, not yet imported, and gone after the test."""
    (tmp_path / "swinging.py").write_text(PACKAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    forget()


def forget():
    sys.modules.pop("swinging", None)
    gym.registry.pop("Swing-v0", None)


def swing():
    draw = np.random.default_rng(0)
    angle = draw.uniform(-np.pi, np.pi, 400)
    return {
        "observations": np.stack([np.cos(angle), np.sin(angle), draw.normal(size=400)], axis=1),
        "actions": draw.uniform(-2, 2, (400, 1)),
        "rewards": -(angle**2),
        "terminations": np.zeros(400, bool),
        "truncations": np.arange(400) % 20 == 19,
    }


def test_a_stored_set_keeps_the_module_and_imports_it_only_where_it_is_typed():
    sys.path.append(".")
    store_episodes("mine/swing-v0", swing(), environment_id=TYPED)
    forget()
    with pytest.raises(UserError, match=f"names the environment {TYPED}, .* if you trust it"):
        load_named("mine/swing-v0")
    assert "swinging" not in sys.modules
    episodes = load_named("mine/swing-v0", TYPED)
    assert episodes.environment_id == TYPED and episodes.environment_kwargs == {"g": 9.0}
    assert make_environment(TYPED).unwrapped.g == 9.0


def test_the_module_may_be_typed_where_the_data_name_the_environment_alone():
    sys.path.append(".")
    make_environment(TYPED)
    store_episodes("mine/swing-v0", swing(), environment_id="Swing-v0")
    forget()
    assert load_named("mine/swing-v0", TYPED).environment_kwargs == {"g": 9.0}


def test_the_commands_store_train_and_score_in_it(call, tmp_path):
    np.savez("swing.npz", **swing())
    stored = ["file=swing.npz", "id=mine/swing-v0", f"environment={TYPED}", "overwrite=true"]
    with pytest.MonkeyPatch.context() as path:  # as `python -m` looks in the working directory
        path.syspath_prepend(tmp_path)
        ended = call("-m envs.data.store", *stored)
    assert ended.returncode == 0, ended.stderr
    forget()
    small = [key for key in SMALL if not key.startswith("dataset.")]
    run = ["dataset=minari", "dataset.id=mine/swing-v0", *small, "steps=10", "run_dir=run"]
    ended = call("train.py", *run)
    assert ended.returncode == 1 and f"give dataset.environment={TYPED}" in ended.stderr
    ended = call("train.py", *run, f"dataset.environment={TYPED}")
    assert ended.returncode == 0, ended.stderr

    # Another process evaluates the folder: nothing is imported until the module is typed.
    forget()
    ended = call("eval.py", "run=run", "episodes=2")
    assert ended.returncode == 1 and f"give environment={TYPED}" in ended.stderr
    assert "swinging" not in sys.modules
    ended = call("eval.py", "run=run", "episodes=2", f"environment={TYPED}")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            "no_such:My-v0",
            r"module no_such, which cannot be imported \(ModuleNotFoundError: No mod",
        ),
        ("broken:My-v0", r"module broken, which cannot be imported \(ZeroDivisionError"),
        ("swinging:Sving-v0", r"'swinging:Sving-v0' does not exist \(did you mean 'Swing-v0'\?\)"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence_before_the_data_are_made(
    environment, message, call, store, tmp_path
):
    (tmp_path / "broken.py").write_text("1 / 0")
    sys.path.append(".")
    with pytest.raises(UserError, match=message):
        make_environment(environment)
    ended = call("train.py", f"dataset.environment={environment}", "dataset.steps=1500")
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
    assert not list(store.glob("*")), "no data were made"
