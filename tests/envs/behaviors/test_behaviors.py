import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from common.errors import UserError
from envs.behaviors import (
    DIRECTORY,
    QUALITIES,
    RECIPES,
    SNAPSHOTS,
    Snapshots,
    find_recipe,
    load_snapshots,
)
from envs.behaviors.policy import (
    Behavior,
    load_behavior,
)
from envs.simulation.simulators import Simulators
from envs.tasks import TASKS


def make_behavior(observation_dim=5, action_dim=2, hidden=32, scale=1.0):
    rng = np.random.default_rng(0)
    shapes = {
        "hidden_0": (hidden, observation_dim),
        "hidden_1": (hidden, hidden),
        "mean": (action_dim, hidden),
        "log_std": (action_dim, hidden),
    }
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = scale * rng.standard_normal(shape).astype(np.float32) / 3
        weights[f"{name}.bias"] = rng.standard_normal(shape[0]).astype(np.float32) / 3
    return Behavior(weights, {"algorithm": "SAC"})


@pytest.mark.parametrize("scale", [0.3, 30.0])  # large: log_std beyond both of its bounds
def test_acts_like_the_same_network_in_torch_in_double_precision(scale):
    behavior = make_behavior(scale=scale)
    weights = {name: torch.from_numpy(w).double() for name, w in behavior.weights.items()}
    rng = np.random.default_rng(1)
    observations = rng.standard_normal((7, 5)).astype(np.float32)
    noise = rng.standard_normal((7, 2)).astype(np.float32)

    def linear(name, x):
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    hidden = torch.from_numpy(observations).double()
    for name in ("hidden_0", "hidden_1"):
        hidden = torch.relu(linear(name, hidden))
    mean, log_std = linear("mean", hidden), linear("log_std", hidden).clamp(-20, 2)
    if scale > 1:
        assert (linear("log_std", hidden) > 2).any() and (linear("log_std", hidden) < -20).any()
    expected = torch.tanh(mean + log_std.exp() * torch.from_numpy(noise).double())
    actions = behavior.act(observations, noise)
    assert actions.shape == (7, 2) and actions.dtype == np.float32
    np.testing.assert_allclose(actions, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(behavior.act(observations), torch.tanh(mean).numpy(), atol=1e-4)


def test_an_action_does_not_depend_on_the_rest_of_its_batch():
    behavior = make_behavior(observation_dim=11, hidden=256)
    observations = np.random.default_rng(2).standard_normal((37, 11)).astype(np.float32)
    everything = behavior.act(observations)
    rng = np.random.default_rng(3)
    for _ in range(50):
        rows = rng.choice(37, size=rng.integers(1, 38), replace=False)
        np.testing.assert_array_equal(behavior.act(observations[rows]), everything[rows])


def test_a_saved_policy_acts_alike(tmp_path):
    behavior = make_behavior(hidden=256)
    path = tmp_path / "hopper" / "step_0000001.safetensors"
    behavior.save(path)
    loaded = load_behavior(path)
    observations = np.random.default_rng(4).standard_normal((9, 5)).astype(np.float32)
    np.testing.assert_allclose(loaded.act(observations), behavior.act(observations), atol=0.02)
    assert loaded.metadata == behavior.metadata
    for name, weight in loaded.weights.items():
        np.testing.assert_array_equal(weight, behavior.weights[name].astype(np.float16))


def test_bad_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"missing\.safetensors: no such behaviour policy"):
        load_behavior(tmp_path / "missing.safetensors")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x10" + b"\0" * 7 + b"not a header at all")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_behavior(garbage)
    other = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3)}, other)
    with pytest.raises(UserError, match=r"holds \['weight'\], not "):
        load_behavior(other)
    behavior = make_behavior()
    behavior.weights["mean.bias"] = np.zeros(7, np.float32)
    behavior.save(other)
    with pytest.raises(UserError, match="shapes do not fit together"):
        load_behavior(other)


def test_every_recipe_has_its_policies_and_they_fit_the_environment():
    assert len(RECIPES) == 12
    for name, chosen in SNAPSHOTS.items():
        task = TASKS[name]
        with Simulators(task.environment_id, 1) as simulators:
            observation = simulators.reset(np.array([0]), [0])
            for quality in QUALITIES:
                recipe = find_recipe(f"{name}-{quality}")
                assert recipe is RECIPES[f"builtin/{name}/{quality}-v{chosen.version}"]
                for behavior, step in zip(recipe.behaviors(), recipe.snapshots, strict=True):
                    assert behavior.metadata["environment_id"] == task.environment_id
                    assert behavior.metadata["training_steps"] == str(step)
                    assert behavior.act(observation).shape == (1, simulators.action_dim)
        assert find_recipe(f"{name}-medium-expert").snapshots == (chosen.medium, chosen.expert)
        assert max(chosen.replay) == chosen.medium < chosen.expert
        assert min(chosen.replay.values()) > 0
        files = (DIRECTORY / name).glob("step_*.safetensors")
        assert [int(path.stem[5:]) for path in sorted(files)] == chosen.steps()
    assert find_recipe("ant-medium") is None


def test_recipe_files_round_trip(tmp_path):
    chosen = Snapshots(version=7, replay={10: 3, 20: 1}, medium=20, expert=40)
    chosen.save(tmp_path / "recipe.json")
    assert load_snapshots(tmp_path / "recipe.json") == chosen
    assert chosen.steps() == [10, 20, 40]
