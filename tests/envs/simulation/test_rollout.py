"""Rollouts in real MuJoCo against a plain loop over one environment."""

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from common.errors import UserError
from envs.simulation.rollout import rollout, start_seeds
from envs.simulation.simulators import Simulators
from envs.tasks import Evaluation


def play(actor, environment_id, **keys):
    """Plays an evaluation of one target return."""
    watchers = {name: keys.pop(name) for name in ("progress", "on_step") if name in keys}
    asked = Evaluation(environment_id, "carried", 20, keys.pop("target_returns", (0.0,)), **keys)
    return rollout(actor, asked, **watchers)


HOPPER = "Hopper-v5"  # falls within tens of steps under these actors: lengths all differ


class RecurrentActor:
    """A small recurrent policy whose every row is computed alone, to the last bit.

    It sees observations, rewards, is_first and its target return; matrix products would round
    differently for other batch sizes, so they are written as sums over one axis, in float64.
    """

    def __init__(self, observation_dim: int, action_dim: int, scale: float = 0.6) -> None:
        generator = torch.Generator().manual_seed(0)
        self.observation_dim, self.action_dim = observation_dim, action_dim
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.w_in, self.w_h = draw(observation_dim + 1, 8) * 0.5, draw(8, 8) * 0.3
        self.w_out = draw(8, action_dim) * scale

    def initial_state(self, batch_size: int, target_return):
        assert target_return.dtype == torch.float32 and target_return.shape == (batch_size,)
        # Not zero: only is_first makes a row fit to begin with.
        return torch.full((batch_size, 8), 7.0, dtype=torch.float64), target_return

    def act(self, observation, reward, state, is_first):
        assert observation.dtype == reward.dtype == torch.float32
        assert is_first.dtype == torch.bool
        state, target = state
        state = torch.where(is_first[:, None], torch.zeros_like(state), state)
        reward = torch.where(is_first, target, reward)
        x = torch.cat([observation, reward[:, None]], 1).double()
        state = torch.tanh(_rows(x, self.w_in) + _rows(state, self.w_h))
        return _rows(state, self.w_out).float(), (state, target)


def _rows(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(x.shape[0], w.shape[1], dtype=x.dtype)
    for k in range(x.shape[1]):
        total = total + x[:, k, None] * w[k]
    return total


class Recorder:
    """Passes an actor through and keeps all it was given."""

    def __init__(self, actor) -> None:
        self.actor, self.seen = actor, []

    def initial_state(self, *arguments):
        return self.actor.initial_state(*arguments)

    def act(self, observation, reward, state, is_first):
        assert torch.is_inference_mode_enabled()
        self.seen.append((observation, reward, is_first))
        return self.actor.act(observation, reward, state, is_first)


def plain_loop(actor, environment_id, seed, episode, horizon=10**9, target=0.0):
    """One environment, one episode, nothing vectorised."""
    env = gymnasium.make(environment_id)
    observation, _ = env.reset(seed=int(start_seeds(seed, np.array([episode]))[0]))
    state, reward, rewards, inputs = actor.initial_state(1, torch.tensor([target])), 0.0, [], []
    while True:
        inputs.append((np.float32(observation), np.float32(reward), not rewards))
        action, state = actor.act(
            torch.tensor(observation, dtype=torch.float32)[None],
            torch.tensor([reward], dtype=torch.float32),
            state,
            torch.tensor([not rewards]),
        )
        action = np.clip(action[0].numpy(), env.action_space.low, env.action_space.high)
        observation, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        if terminated or truncated or len(rewards) == horizon:
            env.close()
            return rewards, inputs


@pytest.fixture(scope="module")
def actor() -> RecurrentActor:
    return RecurrentActor(11, 3)


@pytest.fixture(scope="module")
def expected(actor):
    return [plain_loop(actor, HOPPER, 5, i) for i in range(7)]


@pytest.mark.parametrize("n_envs", [1, 3, 7, 50, None])
def test_every_number_of_environments_gives_the_plain_loop(actor, expected, n_envs):
    result = play(actor, HOPPER, episodes=7, seed=5, n_envs=n_envs)
    lengths = [len(rewards) for rewards, _ in expected]
    assert result.episode_lengths.tolist() == [lengths]
    assert len(set(lengths)) > 3  # or the slots would never have run out of step
    assert result.episode_returns[0].tolist() == pytest.approx(
        [sum(rewards) for rewards, _ in expected], rel=1e-12
    )
    assert result.episode_returns.dtype == np.float64
    assert result.episode_lengths.dtype == np.int64
    assert result.environment_id == HOPPER and result.successes is None
    assert result.engine_version == gymnasium.__version__
    assert result.mujoco_version == mujoco.__version__


def test_the_actor_is_fed_each_episode_as_it_happened(actor, expected):
    recorder = Recorder(actor)
    play(recorder, HOPPER, episodes=7, seed=5, n_envs=3)
    lengths = [len(rewards) for rewards, _ in expected]
    slots = [[0, 3, 6], [1, 4], [2, 5]]
    assert len(recorder.seen) == max(sum(lengths[i] for i in slot) for slot in slots)
    for slot, indices in enumerate(slots):
        steps = iter(recorder.seen)
        for i in indices:
            for observation, reward, first in expected[i][1]:
                seen = next(steps)
                assert np.array_equal(seen[0][slot].numpy(), observation)
                assert first or seen[1][slot].item() == reward
                assert seen[2][slot].item() == first
        for _, _, is_first in steps:  # a slot that is done begins no further episode
            assert not is_first[slot]


def test_a_held_target_is_one_of_which_no_reward_is_subtracted(actor):
    recorder = Recorder(actor)
    play(recorder, HOPPER, episodes=3, seed=5, n_envs=2, held=True)
    assert not any(reward.any() for _, reward, _ in recorder.seen)


@pytest.mark.parametrize("n_envs", [1, 2, None])
def test_several_target_returns_in_one_rollout_are_as_each_alone(actor, n_envs):
    targets = (0.0, 2.0, -3.0)
    together = play(actor, HOPPER, episodes=5, seed=5, n_envs=n_envs, target_returns=targets)
    for row, target in enumerate(targets):
        alone = play(actor, HOPPER, episodes=5, seed=5, n_envs=n_envs, target_returns=(target,))
        assert np.array_equal(together.episode_returns[row], alone.episode_returns[0])
        assert np.array_equal(together.episode_lengths[row], alone.episode_lengths[0])
    assert len(np.unique(together.episode_returns)) == 15  # and the targets do matter


def test_environment_limit_and_horizon_end_episodes_without_a_termination():
    cheetah = RecurrentActor(17, 6)
    result = play(cheetah, "HalfCheetah-v5", episodes=2, seed=0)
    assert result.episode_lengths.tolist() == [[1000, 1000]]
    cut = play(cheetah, "HalfCheetah-v5", episodes=5, seed=0, n_envs=2, horizon=13)
    assert cut.episode_lengths.tolist() == [[13] * 5]
    for i in range(5):
        rewards, _ = plain_loop(cheetah, "HalfCheetah-v5", 0, i, horizon=13)
        assert cut.episode_returns[0, i] == pytest.approx(sum(rewards), rel=1e-12)
    longer = play(cheetah, "HalfCheetah-v5", episodes=1, seed=0, horizon=1200)
    assert longer.episode_lengths.tolist() == [[1200]]


def test_seed_fixes_everything_and_the_start_states_differ(actor):
    def returns(seed):
        return play(actor, HOPPER, episodes=4, seed=seed).episode_returns[0]

    assert np.array_equal(returns(1), returns(1))
    assert not np.isin(returns(1), returns(2)).any()
    assert len(set(returns(1))) == 4
    assert np.array_equal(
        play(actor, HOPPER, episodes=2, seed=1).episode_returns[0], returns(1)[:2]
    )


def test_an_id_without_a_version_is_reported_with_the_one_that_ran(actor):
    assert play(actor, "Hopper", episodes=1, seed=0).environment_id == HOPPER


def test_start_seeds_depend_on_seed_and_index_alone():
    assert (
        start_seeds(3, np.array([2, 0])).tolist() == start_seeds(3, np.arange(3))[[2, 0]].tolist()
    )
    seeds = np.concatenate([start_seeds(s, np.arange(200)) for s in range(5)])
    assert len(np.unique(seeds)) == 1000


def test_actions_are_clipped_to_the_bounds(actor):
    class Scaled(RecurrentActor):
        def act(self, *args):
            action, state = super().act(*args)
            return torch.sign(action) * self.size, state

    results = []
    for size in (1.0, 50.0):
        bang = Scaled(11, 3)
        bang.size = size
        results.append(play(bang, HOPPER, episodes=2, seed=0).episode_returns)
    assert np.array_equal(*results)


def test_progress_counts_finished_episodes(actor):
    calls = []
    play(actor, HOPPER, episodes=7, seed=5, n_envs=3, progress=lambda *counts: calls.append(counts))
    finished = [done for done, _ in calls]
    assert finished == sorted(set(finished))
    assert calls[-1] == (7, 7)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_closes_the_environments(actor, monkeypatch, error):
    closed = []
    close = Simulators.close
    monkeypatch.setattr(Simulators, "close", lambda self: (closed.append(1), close(self)))

    class Interrupted(Recorder):
        def act(self, *args):
            if len(self.seen) == 5:
                raise error
            return super().act(*args)

    with pytest.raises(error):
        play(Interrupted(actor), HOPPER, episodes=4, seed=0)
    assert closed == [1]


@pytest.mark.parametrize(
    ("environment_id", "words"),
    [
        ("Hoper-v5", ["'Hoper-v5' does not exist", "Hopper-v5"]),
        ("Hopper-v9", ["'Hopper-v9' does not exist", "Hopper-v5"]),
        ("zzzzqqqq", ["'zzzzqqqq' does not exist; install"]),
        ("Hopper-v2", ["'Hopper-v2' cannot be made"]),
        ("CartPole-v1", ["CartPole-v1", "the actions are Discrete(2)"]),
        ("Walker2d-v5", ["11 observation dimensions", "Walker2d-v5 has 17"]),
    ],
)
def test_an_environment_that_does_not_fit_is_one_sentence(actor, environment_id, words):
    with pytest.raises(UserError) as caught:
        play(actor, environment_id, episodes=1, seed=0)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


class InParts(gymnasium.ObservationWrapper):
    """Hopper, whose observation is a Dict with a matrix in it."""

    def __init__(self, **options):
        super().__init__(gymnasium.make("Hopper-v5", **options))
        box = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float64)
        matrix = gymnasium.spaces.Box(-np.inf, np.inf, (3, 2), np.float64)
        self.observation_space = gymnasium.spaces.Dict({"a": box, "b": matrix})

    def observation(self, observation):
        return {"a": observation[:5], "b": observation[5:].reshape(3, 2)}


def test_observations_in_parts_are_laid_end_to_end(actor):
    gymnasium.register("HopperInParts-v0", InParts, max_episode_steps=1000)
    try:
        parts = play(actor, "HopperInParts-v0", episodes=2, seed=0)
    finally:
        gymnasium.registry.pop("HopperInParts-v0")
    whole = play(actor, "Hopper-v5", episodes=2, seed=0)
    np.testing.assert_array_equal(parts.episode_returns, whole.episode_returns)


def test_action_dimensions_and_values_are_checked():
    with pytest.raises(UserError, match="6 action dimensions, but Hopper-v5 has 3"):
        play(RecurrentActor(11, 6), HOPPER, episodes=1, seed=0)
    undeclared = Recorder(RecurrentActor(11, 6))  # has no attributes to check beforehand
    with pytest.raises(UserError, match=r"shape \(1, 6\).*\(batch, 3\)"):
        play(undeclared, HOPPER, episodes=1, seed=0)
    broken = RecurrentActor(11, 3)
    broken.w_out[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        play(broken, HOPPER, episodes=1, seed=0)


class Reaches(gymnasium.Wrapper):
    """Hopper, which reports a success at its fifth step if it began with an even seed."""

    def __init__(self, **options):
        super().__init__(gymnasium.make("Hopper-v5", **options))

    def reset(self, *, seed=None, options=None):
        self.steps, self.even = 0, seed % 2 == 0
        return super().reset(seed=seed, options=options)

    def step(self, action):
        *result, info = super().step(action)
        self.steps += 1
        return *result, {**info, "success": self.steps == 5 and self.even}


def test_an_episode_with_a_success_at_any_step_is_successful(actor):
    gymnasium.register("Reaches-v0", Reaches, max_episode_steps=1000)
    try:
        result = play(actor, "Reaches-v0", episodes=9, seed=0, n_envs=2, horizon=8)
        short = play(actor, "Reaches-v0", episodes=9, seed=0, horizon=4)
    finally:
        gymnasium.registry.pop("Reaches-v0")
    expected = start_seeds(0, np.arange(9)) % 2 == 0
    assert 0 < expected.sum() < 9
    assert result.successes.tolist() == [expected.tolist()]
    assert not short.successes.any()


def test_keyword_arguments_of_the_environment_and_start_noise_reach_it(actor):
    plain = play(actor, HOPPER, episodes=2, seed=0, horizon=5)
    paid = play(
        actor, HOPPER, episodes=2, seed=0, horizon=5, environment_kwargs={"healthy_reward": 3.0}
    )
    np.testing.assert_allclose(paid.episode_returns[0, 0], plain.episode_returns[0, 0], atol=20)
    assert (paid.episode_returns > plain.episode_returns + 5).all()
    still = play(actor, HOPPER, episodes=2, seed=0, horizon=5, start_noise=0.0)
    assert len(np.unique(still.episode_returns)) == 1
    limited = {"max_episode_steps": 3}
    short = play(actor, HOPPER, episodes=1, seed=0, environment_kwargs=limited)
    assert short.episode_lengths.item() == 3


def test_an_observer_sees_every_step_of_each_slot(actor):
    seen = []
    result = play(
        actor,
        HOPPER,
        episodes=3,
        seed=5,
        n_envs=2,
        on_step=lambda scene: seen.append((*(x.copy() for x in scene[1:]),)),
    )
    first, second, third = result.episode_lengths[0]
    playing, returns, lengths = (np.array(rows) for rows in zip(*seen, strict=True))
    assert lengths[:, 0].tolist()[: first + third + 1] == [*range(first), *range(third + 1)]
    assert playing[:, 1].sum() == second and playing[:, 0].sum() == first + third
    assert not playing[-1].any() and len(seen) == max(first + third, second) + 1
    assert returns[-1].tolist() == result.episode_returns[0, [2, 1]].tolist()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("episodes", v) for v in (0, -1, 10**13)],
        *[("seed", v) for v in (-1, 2**64)],
        *[("target_returns", (v,)) for v in (float("nan"), float("inf"), 1e300)],
        *[("start_noise", v) for v in (-1.0, float("nan"))],
        *[("observation_noise", v) for v in (-0.5, float("inf"))],
        *[(key, 0) for key in ("n_envs", "horizon", "context_length")],
        ("target_returns", ()),
        ("action_delay", -1),
        ("engine", "isaac"),
    ],
)
def test_what_an_evaluation_cannot_be_is_refused_by_name(key, value):
    keys = {"rollout": "carried", "context_length": 20, "target_returns": (0.0,), key: value}
    with pytest.raises(UserError, match=f"^{key} "):
        Evaluation(HOPPER, **keys)


def test_rolling_needs_two_steps_of_context():
    Evaluation(HOPPER, "rolling", 2, (0.0,))
    Evaluation(HOPPER, "window", 1, (0.0,))
    with pytest.raises(UserError, match="context_length is 1, but rollout=rolling"):
        Evaluation(HOPPER, "rolling", 1, (0.0,))
