"""Acting in one call: the same episodes as the rollout that scores, to the bit."""

import gymnasium
import numpy as np
import pytest
import torch

from agents import Actor, load_actor
from agents.acting import ROLLOUTS, make_actor
from agents.backbones.min_gru import MinGRUConfig
from agents.checkpoint import RunDescription, save_description, save_policy
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.errors import UserError
from envs.simulation.rollout import rollout, start_seeds
from envs.tasks import Evaluation

BACKBONE = MinGRUConfig(d_model=16, n_layer=2)
TARGET = 300.0


def make_policy(observation_dim=11, action_dim=3, **keys) -> ReturnConditionedPolicy:
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        PolicyConfig(**keys), BACKBONE, observation_dim=observation_dim, action_dim=action_dim
    )
    policy.target_return.fill_(TARGET)
    return policy.eval()


def save_run(folder, policy, evaluation: dict) -> None:
    save_description(folder, policy, BACKBONE, RunDescription({}, evaluation))
    save_policy(folder, policy, 1)


class Recording:
    """Keeps every action that an actor of a rollout chose."""

    def __init__(self, actor) -> None:
        self.actor, self.actions = actor, []
        self.initial_state = actor.initial_state

    def act(self, *inputs):
        action, state = self.actor.act(*inputs)
        self.actions.append(action[0].numpy())
        return action, state


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ROLLOUTS)
def test_an_episode_equals_that_of_the_rollout_to_the_bit(tmp_path, kind, held):
    save_run(tmp_path, make_policy(), {"rollout": kind, "context_length": 6, "held": held})
    recording = Recording(make_actor(make_policy(), kind, 6))
    asked = Evaluation("Hopper-v5", kind, 6, (TARGET,), held, episodes=2, n_envs=1)
    played = rollout(recording, asked)

    actor, env = load_actor(str(tmp_path)), gymnasium.make("Hopper-v5")
    actions, returns = [], []
    for seed in start_seeds(asked.seed, np.arange(2)):
        observation, _ = env.reset(seed=int(seed))
        actor.reset()
        reward, total, done = None, 0.0, False
        while not done:
            actions.append(actor.act(observation, None if held else reward))
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            total, done = total + reward, terminated or truncated
        returns.append(total)
    assert len(actions) > 20, "long enough for a bounded past to be cut"
    np.testing.assert_array_equal(np.array(actions), np.array(recording.actions))
    assert returns == pytest.approx(played.episode_returns[0].tolist(), rel=1e-12)


@pytest.mark.parametrize("kind", ROLLOUTS)
def test_each_row_of_a_batch_acts_as_it_would_alone(kind):
    """Rows begin new episodes at different steps and have targets of their own."""
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(12, 3, 11)).astype(np.float32)
    rewards = generator.normal(size=(12, 3))
    first = generator.random((12, 3)) < 0.2
    targets = np.array([100.0, 200.0, -50.0])
    batch = Actor(make_policy(), rollout=kind, context_length=5, target_return=targets)
    batch.reset(3)
    found = np.stack([batch.act(*step) for step in zip(observations, rewards, first, strict=True)])
    for row, target in enumerate(targets):
        alone = Actor(make_policy(), rollout=kind, context_length=5, target_return=target)
        for t in range(12):
            if first[t, row]:
                alone.reset()
            action = alone.act(observations[t, row], rewards[t, row])
            np.testing.assert_allclose(found[t, row], action, atol=1e-5)


def test_the_target_return_and_the_rewards_change_what_it_does():
    observation = np.ones(11)

    def second_action(target, reward):
        actor = Actor(make_policy(), target_return=target)
        actor.act(observation)
        return actor.act(observation, reward)

    base = second_action(None, 1.0)
    np.testing.assert_array_equal(base, second_action(TARGET, 1.0))
    assert np.abs(base - second_action(3000.0, 1.0)).max() > 1e-3
    assert np.abs(base - second_action(TARGET, -500.0)).max() > 1e-3


@pytest.mark.parametrize("scored_held", [False, True])
def test_a_target_is_held_as_it_was_scored_or_as_asked_for(tmp_path, scored_held):
    evaluation = {"rollout": "carried", "context_length": 6, "held": scored_held}
    save_run(tmp_path, make_policy(), evaluation)

    def actions(reward, **keys):
        actor = load_actor(tmp_path, **keys)
        return [actor.act(np.ones(11), reward) for _ in range(3)]

    held, counted = actions(None, held=True), actions(-500.0, held=False)
    assert np.abs(np.subtract(held, counted)).max() > 1e-3
    np.testing.assert_array_equal(actions(-500.0, held=True), held)
    np.testing.assert_array_equal(actions(-500.0, held=True, target_return=TARGET), held)
    np.testing.assert_array_equal(actions(0.0, held=False), held)
    np.testing.assert_array_equal(actions(-500.0), held if scored_held else counted)
    np.testing.assert_array_equal(actions(-500.0, target_return=TARGET), counted)
    with pytest.raises(UserError, match="without the reward"):
        actions(None, target_return=TARGET)


def test_an_observation_of_a_dict_space_is_flattened_as_in_training():
    box = gymnasium.spaces.Box(-1, 1, (2, 2), np.float32)
    space = gymnasium.spaces.Dict({"z": box, "a": gymnasium.spaces.Dict({"c": box, "b": box})})
    actor = Actor(make_policy(observation_dim=12))
    observation = space.sample()
    found = actor.act(observation)
    actor.reset()
    flat = gymnasium.spaces.flatten(space, observation)
    np.testing.assert_array_equal(found, actor.act(flat))


def test_a_policy_without_returns_needs_no_rewards():
    actor = Actor(make_policy(return_to_go=False))
    actor.act(np.ones(11))
    assert actor.act(np.ones(11)).shape == (3,)


def after_reset(rows, *inputs):
    def call():
        actor = Actor(make_policy())
        actor.reset(rows)
        actor.act(*inputs)

    return call


def without_reward():
    actor = Actor(make_policy())
    actor.act(np.ones(11))
    actor.act(np.ones(11))


def reset_to_other_rows():
    Actor(make_policy(), target_return=np.ones(3)).reset(2)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Actor(make_policy(return_to_go=False), target_return=1), "does not see it"),
        (lambda: Actor(make_policy(), target_return=np.inf), "one finite number"),
        (without_reward, "call reset\\(\\) where an episode begins"),
        (after_reset(None, np.ones(4)), "has the shape \\(4,\\); the policy expects \\(11,\\)"),
        (after_reset(None, np.ones((2, 11))), "expects \\(11,\\) after reset\\(\\)"),
        (after_reset(3, np.ones((2, 11))), "expects \\(3, 11\\) after reset\\(3\\)"),
        (after_reset(3, np.ones((3, 11)), np.ones(2)), "reward .* has the shape \\(2,\\)"),
        (after_reset(3, np.ones((3, 11)), None, [True]), "is_first has 1 values for 3 rows"),
        (after_reset(None, "left"), "the observation given to act\\(\\) is 'left'; give numbers"),
        (after_reset(0), "0 rows"),
        (reset_to_other_rows, "the targets are for 3 rows"),
    ],
)
def test_what_does_not_fit_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


@pytest.mark.parametrize("evaluation", [{}, {"rollout": "sideways", "context_length": 3}])
def test_a_run_that_does_not_say_how_it_acts_is_refused(tmp_path, evaluation):
    save_run(tmp_path, make_policy(), evaluation)
    with pytest.raises(UserError, match=r"config\.json does not say how the policy acts"):
        load_actor(tmp_path)
