"""The policy in one file of NumPy acts as the policy itself does, and without PyTorch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from agents import Actor, load_actor
from agents.backbones.attention import AttentionConfig
from agents.backbones.min_gru import MinGRUConfig
from agents.backbones.min_lstm import MinLSTMConfig
from agents.checkpoint import RunDescription, save_description, save_policy
from agents.export.__main__ import ExportConfig, export
from agents.export.min_rnn import Policy
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.errors import UserError

SMALL = {"d_model": 24, "n_layer": 2}
EVERY_OPTION = {
    "timestep_embedding": True, "max_timestep": 50, "token_norm": True, "return_before_head": True,
    "hidden": [1, 3],
}  # fmt: skip
WIDE = {**SMALL, "expansion": 2}
POLICIES = [
    (MinGRUConfig(), PolicyConfig()),  # the default size
    (MinLSTMConfig(**SMALL), PolicyConfig()),
    (MinGRUConfig(**WIDE, learnable_initial_state=True), PolicyConfig(**EVERY_OPTION)),
    (MinLSTMConfig(**WIDE), PolicyConfig(previous_action=False, return_to_go=False)),
]


def save_run(
    folder, backbone, config, rollout, held=False, chosen=False
) -> ReturnConditionedPolicy:
    """A run of random weights, every buffer and start state among them."""
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(config, backbone, observation_dim=5, action_dim=2).eval()
    for name, parameter in policy.named_parameters():
        if "start" in name:
            torch.nn.init.normal_(parameter)
    policy.set_statistics(
        observation_mean=torch.randn(5), observation_std=torch.rand(5) + 0.5,
        action_low=torch.tensor([-1.0, 0.0]), action_high=torch.tensor([2.0, 0.4]),
        target_return=700.0,
    )  # fmt: skip
    evaluation = {"rollout": rollout, "context_length": 7, "held": held, "chosen": chosen}
    save_description(folder, policy, backbone, RunDescription({}, evaluation))
    save_policy(folder, policy, 1)
    return policy


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("rollout", ["carried", "rolling"])
@pytest.mark.parametrize(("backbone", "config"), POLICIES)
def test_a_thousand_steps_with_resets_equal_those_of_the_policy(
    tmp_path, backbone, config, rollout, rows
):
    policy = save_run(tmp_path, backbone, config, rollout)
    export(tmp_path, tmp_path / "policy.npz")
    found, expected = (
        Policy(tmp_path / "policy.npz"),
        Actor(policy, rollout=rollout, context_length=7),
    )
    found.reset(rows)
    expected.reset(rows)
    generator = np.random.default_rng(0)
    spread = 0.0
    for _ in range(1000):
        observation, reward = generator.normal(size=(rows, 5)), generator.normal(size=rows)
        is_first = generator.random(rows) < 0.02
        action = expected.act(observation, reward, is_first)
        np.testing.assert_allclose(found.act(observation, reward, is_first), action, atol=1e-5)
        spread = max(spread, np.abs(action[0] - action.mean(0)).max(), abs(action[0, 0]))
    assert spread > 0.01, "the actions differ, so that equal ones mean something"


def test_a_policy_whose_critic_chose_is_exported_without_it_only_if_that_is_said(tmp_path):
    save_run(tmp_path, *POLICIES[1], "carried", chosen=True)
    with pytest.raises(UserError, match=r"does not have; give without_critic=true to export the p"):
        export(tmp_path, tmp_path / "policy.npz")
    assert not (tmp_path / "policy.npz").exists()
    export(tmp_path, tmp_path / "policy.npz", without_critic=True)
    save_run(tmp_path, *POLICIES[1], "carried")
    export(tmp_path, tmp_path / "plain.npz")
    assert (tmp_path / "policy.npz").read_bytes() == (tmp_path / "plain.npz").read_bytes()


def test_a_target_is_held_as_by_load_actor(tmp_path):
    save_run(tmp_path, *POLICIES[1], "carried", held=True)
    export(tmp_path, tmp_path / "policy.npz")
    for keys, reward in ({}, None), ({}, -900), ({"target_return": 50, "held": True}, -900), (
        {"target_return": 50}, -900), ({"held": False}, -900):  # fmt: skip
        found = Policy(tmp_path / "policy.npz", **keys)
        expected = load_actor(tmp_path, **keys)
        for _ in range(3):
            action = expected.act(np.ones(5), reward)
            np.testing.assert_allclose(found.act(np.ones(5), reward), action, atol=1e-5)
    with pytest.raises(ValueError, match="give the reward"):
        found.act(np.ones(5))


def test_the_exported_files_act_where_pytorch_cannot_be_imported(tmp_path):
    (tmp_path / "run").mkdir()
    policy = save_run(tmp_path / "run", *POLICIES[1], "carried")
    export(tmp_path / "run", tmp_path / "robot" / "policy.npz")
    program = """
import sys
for name in ("torch", "numba", "agents", "common"):
    sys.modules[name] = None
from min_rnn import Policy
policy = Policy("policy.npz", target_return=50)
policy.reset()
print(*policy.act([0.1, 0.2, 0.3, 0.4, 0.5]))
print(*policy.act([0.1, 0.2, 0.3, 0.4, 0.5], 1.0))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "robot", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    actor = Actor(policy, target_return=50)
    observation = np.arange(1, 6) / 10
    expected = [actor.act(observation), actor.act(observation, 1.0)]
    found = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len((tmp_path / "robot" / "min_rnn.py").read_text().splitlines()) <= 100


@pytest.mark.parametrize(
    ("backbone", "config", "rollout", "sentence"),
    [
        (AttentionConfig(**SMALL), PolicyConfig(), "carried", "its mixers are Attention"),
        (MinGRUConfig(**SMALL), PolicyConfig(tokens=3), "carried", "3 tokens a step"),
        (MinGRUConfig(**SMALL, convolution=4), PolicyConfig(), "carried", "CausalConvolution"),
        (MinGRUConfig(**SMALL), PolicyConfig(), "window", "scored with rollout=window"),
    ],
)
def test_a_policy_without_a_numpy_form_is_one_sentence(
    tmp_path, backbone, config, rollout, sentence
):
    save_run(tmp_path, backbone, config, rollout)
    with pytest.raises(UserError, match=sentence):
        export(tmp_path, tmp_path / "policy.npz")
    assert not (tmp_path / "policy.npz").exists()


def test_a_file_of_the_user_is_not_replaced(tmp_path):
    save_run(tmp_path, *POLICIES[1], "carried")
    (tmp_path / "min_rnn.py").write_text("# mine\n")
    with pytest.raises(UserError, match=r"min_rnn\.py is in the way"):
        export(tmp_path, tmp_path / "policy.npz")
    assert (tmp_path / "min_rnn.py").read_text() == "# mine\n"
    with pytest.raises(UserError, match=r"ends in \.npz"):
        ExportConfig("run", "policy.pt")


def test_a_wrong_observation_or_no_reward_is_refused(tmp_path):
    save_run(tmp_path, *POLICIES[1], "carried")
    export(tmp_path, tmp_path / "policy.npz")
    policy = Policy(tmp_path / "policy.npz")
    policy.reset(3)
    with pytest.raises(ValueError, match=r"shape \(2, 5\), for 3 rows"):
        policy.act(np.ones((2, 5)))
    policy.act(np.ones((3, 5)))
    with pytest.raises(ValueError, match="give the reward of the previous action"):
        policy.act(np.ones((3, 5)))
