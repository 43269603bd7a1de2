"""A critic that chooses between two actions: the chosen one is the arg-max, in every rollout."""

import gymnasium
import numpy as np
import pytest
import torch
from test_critic import make_transitions

from agents import load_actor
from agents.acting import ROLLOUTS, make_actor
from agents.backbones.min_gru import MinGRUConfig
from agents.checkpoint import RunDescription, save_description, save_policy
from agents.critic.file import CRITIC, critic_of, save_critic
from agents.critic.learning import Critic, CriticConfig, train_critic
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.errors import UserError
from envs.simulation.rollout import rollout, start_seeds
from envs.tasks import Evaluation

BACKBONE = MinGRUConfig(d_model=16, n_layer=2)
TARGET = 300.0


def make_policy() -> ReturnConditionedPolicy:
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(PolicyConfig(), BACKBONE, observation_dim=11, action_dim=3)
    policy.target_return.fill_(TARGET)
    return policy.eval()


def q(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """Prefers now one direction, now the other."""
    return torch.sin(40 * observation[:, 0]) * action.sum(-1)


def acted(state, action):
    if hasattr(state, "past"):
        return state._replace(past=state.past._replace(action=action))
    return state._replace(action=action)


def inputs(rows: int, time: int):
    """Observations, rewards and is_first of some rows; one begins again on the way."""
    draw = torch.Generator().manual_seed(0)
    observations = torch.randn(time, rows, 11, generator=draw)
    is_first = torch.zeros(time, rows, dtype=torch.bool)
    is_first[0], is_first[time // 2, 0] = True, True
    return zip(observations, 50 * torch.rand(time, rows, generator=draw), is_first, strict=True)


@pytest.mark.parametrize("kind", ROLLOUTS)
def test_the_chosen_action_is_the_arg_max_of_two_actors_of_which_one_holds(kind):
    policy, targets = make_policy(), torch.tensor([300.0, 100.0, 700.0])
    chooser = make_actor(policy, kind, 6, q)
    single = make_actor(policy, kind, 6)
    state = chooser.initial_state(3, targets)
    counted, held = single.initial_state(3, targets), single.initial_state(3, targets)
    chosen = []
    with torch.inference_mode():
        for observation, reward, is_first in inputs(3, 40):
            action, state = chooser.act(observation, reward, state, is_first)
            first, counted = single.act(observation, reward, counted, is_first)
            second, held = single.act(observation, torch.zeros(3), held, is_first)
            better = q(observation, second) > q(observation, first)
            expected = torch.where(better.unsqueeze(-1), second, first)
            torch.testing.assert_close(action, expected)
            # Both go on from what was done.
            counted, held = acted(counted, expected), acted(held, expected)
            chosen += better.tolist()
    assert 10 < sum(chosen) < len(chosen) - 10, "both are chosen"


@pytest.mark.parametrize("kind", ROLLOUTS)
@pytest.mark.parametrize("always", ["counted", "held"])
def test_a_critic_that_always_says_the_same_leaves_the_policy_itself(kind, always):
    policy, single = make_policy(), make_actor(make_policy(), kind, 6)
    with torch.inference_mode():
        rows = list(inputs(2, 30))
        state = single.initial_state(2)
        expected = []
        for observation, reward, is_first in rows:
            given = reward if always == "counted" else torch.zeros(2)
            action, state = single.act(observation, given, state, is_first)
            expected.append(action)
        calls = iter(range(1000))  # the held action is asked about first

        def constant(_, action):
            asked_of_held = next(calls) % 2 == 0
            return torch.full((len(action),), float(asked_of_held == (always == "held")))

        chooser = make_actor(policy, kind, 6, constant)
        state = chooser.initial_state(2)
        for (observation, reward, is_first), wanted in zip(rows, expected, strict=True):
            action, state = chooser.act(observation, reward, state, is_first)
            torch.testing.assert_close(action, wanted)


def save_run(folder, sha256="0" * 64) -> None:
    """A run scored with a critic of random weights."""
    evaluation = {"rollout": "carried", "context_length": 6, "held": False, "chosen": True}
    save_description(
        folder, make_policy(), BACKBONE, RunDescription({"sha256": "0" * 64}, evaluation)
    )
    save_policy(folder, make_policy(), 1)
    torch.manual_seed(1)
    critic = Critic(16, 11, 3)
    save_critic(folder, critic, CriticConfig(updates=5, width=16), sha256)


def test_load_actor_plays_the_episodes_of_the_rollout_to_the_bit(tmp_path):
    save_run(tmp_path)
    critic = critic_of(tmp_path, "0" * 64)
    asked = Evaluation("Hopper-v5", "carried", 6, (TARGET,), chosen=True, episodes=2, n_envs=1)
    played = rollout(make_actor(make_policy(), "carried", 6, critic), asked)
    plain = rollout(make_actor(make_policy(), "carried", 6), asked)
    actor, env = load_actor(str(tmp_path)), gymnasium.make("Hopper-v5")
    returns = []
    for seed in start_seeds(asked.seed, np.arange(2)):
        observation, _ = env.reset(seed=int(seed))
        actor.reset()
        reward, total, done = None, 0.0, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(actor.act(observation, reward))
            total, done = total + reward, terminated or truncated
        returns.append(total)
    assert returns == pytest.approx(played.episode_returns[0].tolist(), rel=1e-12)
    assert played.episode_returns.tolist() != plain.episode_returns.tolist()

    # Whoever asks for a target of their own, or holds it, gets the policy alone.
    for keys in ({"target_return": 50.0}, {"held": True}):
        alone = load_actor(str(tmp_path), **keys)
        assert alone.act(np.zeros(11)).shape == (3,)
        assert type(alone._actor).__name__ == "FusedPolicy"


def test_a_missing_critic_and_one_of_other_data_are_one_sentence(tmp_path):
    save_run(tmp_path, sha256="1" * 64)
    with pytest.raises(UserError, match=r"is the critic of other data than the policy beside it"):
        load_actor(tmp_path)
    (tmp_path / CRITIC).unlink()
    with pytest.raises(UserError, match=r"has no critic\.safetensors, .* experiment=chosen, or gi"):
        load_actor(tmp_path)


def test_a_critic_of_the_data_judges_higher_what_earns_more():
    """The choice is only as good as Q: on data where an action is the reward, it finds it."""
    data = make_transitions(*[([0.0] * 20, True)] * 60)
    data = data._replace(rewards=data.actions[:, 0].copy())
    config = CriticConfig(updates=400, width=32, discount=0.0, n_steps=1)
    critic = train_critic(config, data, torch.zeros(3), torch.ones(3), seed=0)
    observation, low, high = torch.randn(50, 3), torch.zeros(50, 2), torch.zeros(50, 2)
    low[:, 0], high[:, 0] = -0.5, 0.5
    assert (critic(observation, high) > critic(observation, low)).float().mean() > 0.95
