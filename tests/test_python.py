"""Training and evaluation called from Python: as the commands do it, and without output."""

import numpy as np
import pytest
from programs import SMALL

from agents.backbones.min_gru import MinGRUConfig
from agents.trainer import TrainerConfig
from common.errors import UserError
from configs.schema import EvaluationConfig, TrainConfig
from envs.data.batches import ProtocolConfig
from envs.data.episodes import Episodes
from envs.data.sources import DatasetConfig
from eval import evaluate
from train import train

SMALL_KEYS = {
    "backbone": MinGRUConfig(d_model=16, n_layer=1, dropout=0.1),
    "protocol": ProtocolConfig(batch_steps=128, context_length=16),
    "evaluation": EvaluationConfig(episodes=3, episodes_in_training=2, every=40),
    "trainer": TrainerConfig(save_every=15, log_every=10),
}


def swing(environment_id: str | None) -> Episodes:
    """Twenty episodes of a pendulum that nobody swings well."""
    draw = np.random.default_rng(0)
    angle, actions = draw.uniform(-np.pi, np.pi, 400), draw.uniform(-2, 2, (400, 1))
    return Episodes.from_arrays(
        observations=np.stack([np.cos(angle), np.sin(angle), draw.normal(size=400)], axis=1),
        actions=actions,
        rewards=-(angle**2),
        terminations=np.zeros(400),
        truncations=np.arange(400) % 20 == 19,
        action_low=[-2],
        action_high=[2],
        dataset_id="mine/swing-v0",
        environment_id=environment_id,
    )


def test_a_run_from_python_is_the_run_of_the_command(
    call, shared_store, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_store))
    monkeypatch.chdir(tmp_path)
    ended = call("train.py", *SMALL, "steps=60", "run_dir=by_command")
    assert ended.returncode == 0, ended.stderr
    capfd.readouterr()

    data = DatasetConfig("builtin", "builtin/hopper/medium-expert-v1", steps=1500)
    run = train(data, steps=60, run_dir="by_python", **SMALL_KEYS)
    assert capfd.readouterr().out == ""
    for name in ("model.safetensors", "config.json", "scores.json"):
        ours, theirs = ((tmp_path / by / name).read_bytes() for by in ("by_python", "by_command"))
        assert ours == theirs, name
    assert [record["step"] for record in run.metrics][-1] == 60
    assert len(run.scores[0].episode_returns) == 3 and run.held_out is None

    # The policy acts, and the run is scored again, with other episodes and targets.
    assert run.actor(target_return=100).act(np.zeros(11)).shape == (3,)
    again = evaluate(run.folder, episodes=2, target_return=[100, 2000])
    assert [score.target_return for score in again] == [100, 2000]
    assert (run.folder / "scores-target_return-100-2000-episodes-2.json").exists()
    assert capfd.readouterr().out == ""

    # Resumed, it finds nothing to do; not asked to resume, it takes nothing over.
    before = (run.folder / "scores.json").stat().st_mtime_ns
    train(data, steps=60, run_dir="by_python", resume=True, **SMALL_KEYS)
    assert (run.folder / "scores.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="by_python"):
        train(data, steps=60, run_dir="by_python", **SMALL_KEYS)


def test_episodes_in_memory_need_no_store(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    episodes = swing("Pendulum-v1")
    run = train(episodes, steps=20, **SMALL_KEYS)
    assert run.folder.parent.name == "mine-swing" and run.folder.name.startswith("min_gru-streamed")
    assert run.scores[0].evaluation.environment_id == "Pendulum-v1"
    assert not store.exists(), "nothing was stored"

    # Without an environment a part is held out, and its error is the result.
    other = train(swing(None), steps=20, run_dir="log", **SMALL_KEYS)
    assert other.scores == [] and other.held_out is not None and other.held_out.episodes == 2
    assert evaluate("log", environment="Pendulum-v1", episodes=1)[0].return_mean < 0

    # The same configuration cannot be run again without the episodes.
    config = TrainConfig(DatasetConfig("memory", "mine/swing-v0"), **SMALL_KEYS)
    with pytest.raises(UserError, match=r"'memory'.*mine/swing-v0.*give its Episodes"):
        train(config, steps=20, run_dir="again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"step": 3}, "train.. has no key 'step'; the keys are backbone, policy"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": "many"}, "steps is"),
        ({"backbone": "min_gro"}, "backbone 'min_gro' does not exist.*min_gru"),
        ({"trainer": {"learning_rate": 1}}, "trainer is .*; give a TrainerConfig"),
    ],
)
def test_a_wrong_key_is_one_sentence(keys, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        train(swing(None), **keys)
    assert not list(tmp_path.iterdir())


def test_evaluate_names_its_keys():
    with pytest.raises(
        UserError, match=r"evaluate\(\) has no key 'episode'; the keys are episodes"
    ):
        evaluate("runs/x", episode=3)
    with pytest.raises(UserError, match="no_such"):
        evaluate("no_such")
