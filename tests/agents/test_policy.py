import pytest
import torch

from agents.acting import ROLLOUTS, RollingActor, WindowActor, make_actor
from agents.backbones import MIXERS
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.errors import UserError

OBSERVATION_DIM, ACTION_DIM = 5, 2
VARIANTS = {
    "default": {},
    "three tokens": {"tokens": 3},
    "three tokens and time": {"tokens": 3, "timestep_embedding": True, "max_timestep": 8},
    "time": {"timestep_embedding": True, "max_timestep": 8},
    "no previous action": {"previous_action": False},
    "return again": {"return_before_head": True},
    "no return": {"return_to_go": False},
    "hidden": {"hidden": [0, 3]},
    "hidden, three tokens": {"hidden": [0, 3], "tokens": 3},
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def make_policy(backbone: str = "min_gru", **config) -> ReturnConditionedPolicy:
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        PolicyConfig(return_scale=10.0, **config),
        MIXERS[backbone][0](d_model=16, n_layer=2),
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
    ).double()
    policy.set_statistics(
        observation_mean=torch.full((OBSERVATION_DIM,), 0.5),
        observation_std=torch.full((OBSERVATION_DIM,), 2.0),
        action_low=torch.tensor([-1.0, -3.0]),
        action_high=torch.tensor([1.0, 5.0]),
        target_return=30.0,
    )
    return policy.eval()


def make_batch(batch: int, time: int, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(batch, time, OBSERVATION_DIM),
        "actions": torch.tanh(normal(batch, time, ACTION_DIM)),
        "returns_to_go": normal(batch, time).cumsum(1),
        "timesteps": torch.arange(time).expand(batch, time).contiguous(),
        "resets": torch.zeros(batch, time, dtype=torch.bool),
        "mask": torch.ones(batch, time, dtype=torch.bool),
    }


def play(actor, observations, rewards, is_first, target_return=None) -> torch.Tensor:
    """Acts along given observations (batch, time, ...) and returns the actions."""
    state, actions = actor.initial_state(len(observations), target_return), []
    with torch.inference_mode():
        for t in range(observations.shape[1]):
            action, state = actor.act(observations[:, t], rewards[:, t], state, is_first[:, t])
            actions.append(action)
    return torch.stack(actions, 1)


def trajectory(time: int, starts: list[int], seed: int = 3):
    """Observations, rewards received before each step, and is_first, of one row."""
    batch = make_batch(1, time, seed)
    is_first = torch.zeros(1, time, dtype=torch.bool)
    is_first[0, starts] = True
    rewards = torch.rand(1, time, dtype=torch.float64).masked_fill(is_first, 0.0)
    return batch["observations"], rewards, is_first


@EVERY
@pytest.mark.parametrize("backbone", MIXERS)
def test_acting_step_by_step_is_the_parallel_form_on_what_was_acted(variant, backbone):
    """What the rollout does is what training does on the episode that came out of it."""
    policy = make_policy(backbone, **VARIANTS[variant])
    observations, rewards, is_first = trajectory(30, [0, 13])
    actions = play(policy, observations, rewards, is_first)

    returns_to_go, timesteps = torch.zeros(1, 30, dtype=torch.float64), torch.zeros(1, 30).long()
    for start, end in ((0, 13), (13, 30)):
        timesteps[0, start:end] = torch.arange(end - start)
        # The target less what was received so far: this step's own reward still counts.
        returns_to_go[0, start:end] = 30.0 - rewards[0, start:end].cumsum(0)
    previous = torch.cat([torch.zeros(1, 1, ACTION_DIM), actions[:, :-1]], 1)
    expected, _ = policy(
        observations,
        returns_to_go,
        previous,
        timesteps,
        is_first,
        policy.backbone.initial_state(1),
    )
    torch.testing.assert_close(actions, expected)


@EVERY
def test_the_first_action_of_an_episode_does_not_depend_on_what_came_before(variant):
    policy = make_policy(**VARIANTS[variant])
    observations, rewards, is_first = trajectory(10, [0, 6])
    other, other_rewards, _ = trajectory(10, [0, 6], seed=9)
    other[:, 6:], other_rewards[:, 7:] = observations[:, 6:], rewards[:, 7:]
    for rollout in ("carried", "rolling", "window"):
        actor = make_actor(policy, rollout, 4)
        left = play(actor, observations, rewards, is_first)
        right = play(actor, other, other_rewards, is_first)
        assert torch.equal(left[:, 6:], right[:, 6:])
        assert not torch.allclose(left[:, :6], right[:, :6])


@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("fused", [True, False])
def test_rows_with_different_targets_equal_separate_runs(rollout, fused):
    policy = make_policy(**VARIANTS["time"])
    kind = torch.float32 if fused else torch.float64
    actor = make_actor(policy.to(kind), rollout, 6)
    # Each row restarts at other steps, and asks for its own target again.
    runs = [trajectory(20, starts, seed) for seed, starts in enumerate(([0, 7], [0], [0, 12, 15]))]
    targets = [30.0, -100.0, 250.0]
    steps = [torch.cat(parts).to(parts[0].dtype) for parts in zip(*runs, strict=True)]
    observations, rewards, is_first = steps[0].to(kind), steps[1].to(kind), steps[2]
    together = play(actor, observations, rewards, is_first, torch.tensor(targets))
    for row, target in enumerate(targets):
        own = slice(row, row + 1)
        alone = play(actor, observations[own], rewards[own], is_first[own], target)
        torch.testing.assert_close(together[own], alone, rtol=1e-5, atol=1e-5)
    # The default is the policy's own target, which is row 0's; the others do differ from it.
    default = play(actor, observations, rewards, is_first)
    torch.testing.assert_close(together[:1], default[:1], rtol=1e-5, atol=1e-5)
    for row in (1, 2):
        assert not torch.allclose(together[row, :3], default[row, :3], atol=1e-2)


def test_a_target_of_another_shape_is_refused_and_the_default_is_never_shared():
    policy = make_policy()
    for wrong in (torch.zeros(1), torch.zeros(3), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match=r"target_return has the shape .* of shape \(2,\)"):
            policy.initial_state(2, wrong)
    state = policy.initial_state(2)
    policy.target_return.fill_(7.0)
    assert state.target_return.tolist() == state.return_to_go.tolist() == [30.0, 30.0]


@EVERY
def test_packed_episodes_do_not_leak(variant):
    """The loss of two episodes in one row is that of each alone, and so are its gradients."""
    policy = make_policy(**VARIANTS[variant])
    batch = make_batch(1, 14)
    batch["resets"][0, [0, 6]] = True
    batch["timesteps"][0, 6:] -= 6

    def losses_and_gradients(parts) -> tuple[torch.Tensor, list[torch.Tensor]]:
        policy.zero_grad()
        total = sum(
            policy.loss(**{k: v[:, part] for k, v in batch.items()})[0] * (part.stop - part.start)
            for part in parts
        )
        total.backward()
        gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
        return total.detach(), gradients

    packed, packed_gradients = losses_and_gradients([slice(0, 14)])
    apart, apart_gradients = losses_and_gradients([slice(0, 6), slice(6, 14)])
    torch.testing.assert_close(packed, apart)
    for a, b in zip(packed_gradients, apart_gradients, strict=True):
        torch.testing.assert_close(a, b)


@EVERY
def test_pieces_of_a_stream_equal_the_whole(variant):
    policy = make_policy(**VARIANTS[variant])
    batch = make_batch(2, 12)
    batch["resets"][:, 0] = True
    batch["resets"][1, 7] = True
    whole, end = policy.loss(**batch)
    state, total = None, 0.0
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        piece = {k: v[:, part] for k, v in batch.items()}
        loss, state = policy.loss(**piece, state=state)
        total = total + loss * (part.stop - part.start) / 12
    torch.testing.assert_close(total, whole)
    for left, right in zip(state.backbone, end.backbone, strict=True):
        torch.testing.assert_close(left, right)
        assert not left.requires_grad


def test_padding_changes_neither_loss_nor_gradient():
    policy = make_policy()
    batch = make_batch(2, 9)
    batch["mask"][0, 6:] = False
    batch["mask"][1, 8:] = False

    def gradients(values) -> list[torch.Tensor]:
        policy.zero_grad()
        policy.loss(**values)[0].backward()
        return [p.grad.clone() for p in policy.parameters()]

    before = gradients(batch)
    for name in ("observations", "actions", "returns_to_go"):
        batch[name] = batch[name].clone()
        batch[name][~batch["mask"]] = 77.0
    for a, b in zip(before, gradients(batch), strict=True):
        torch.testing.assert_close(a, b)


def test_the_loss_is_the_mean_squared_error_of_the_real_steps():
    policy = make_policy()
    batch = make_batch(1, 4)
    batch["resets"][0, 0] = True
    batch["mask"][0, 3] = False
    loss, _ = policy.loss(**batch)
    previous = torch.cat([torch.zeros(1, 1, ACTION_DIM), batch["actions"][:, :-1]], 1)
    predicted, _ = policy(
        batch["observations"],
        batch["returns_to_go"],
        previous,
        batch["timesteps"],
        batch["resets"],
        policy.backbone.initial_state(1),
    )
    error = (predicted - batch["actions"])[0, :3].square().mean()
    torch.testing.assert_close(loss, error.float(), check_dtype=False)


def test_actions_stay_inside_the_bounds():
    policy = make_policy()
    batch = make_batch(4, 6)
    observations = 1e4 * batch["observations"]
    actions = play(policy, observations, batch["returns_to_go"], batch["resets"])
    assert (actions >= policy.action_low).all() and (actions <= policy.action_high).all()
    assert (actions > 1).any()  # the second action's bounds are wider than [-1, 1]


@EVERY
def test_a_window_as_long_as_the_episode_is_the_carried_state(variant):
    policy = make_policy(**VARIANTS[variant])
    observations, rewards, is_first = trajectory(12, [0])
    carried = play(policy, observations, rewards, is_first)
    window = play(WindowActor(policy, 12), observations, rewards, is_first)
    rolling = play(RollingActor(policy, 24), observations, rewards, is_first)
    torch.testing.assert_close(window, carried)
    torch.testing.assert_close(rolling, carried)


def test_a_window_of_one_step_remembers_nothing():
    policy = make_policy()
    observations, rewards, is_first = trajectory(8, [0])
    other = observations.clone()
    other[:, 3] += 1.0
    left = play(WindowActor(policy, 1), observations, rewards, is_first)
    right = play(WindowActor(policy, 1), other, rewards, is_first)
    assert not torch.allclose(left[:, 3], right[:, 3])
    assert torch.equal(left[:, 4:], right[:, 4:])


def test_rolling_keeps_the_age_of_the_state_between_half_and_whole_context():
    policy = make_policy()
    actor = RollingActor(policy, 6)
    ages = torch.zeros(2, dtype=torch.long)
    step = policy.step

    def spy(observation, return_to_go, action, timestep, is_first, state):
        nonlocal ages
        ages = torch.where(is_first, 0, ages + 1)
        _, state = step(observation, return_to_go, action, timestep, is_first, state)
        # Mark the actions by the age of the state that made them.
        return ages.unsqueeze(-1).expand(2, ACTION_DIM).double(), state

    actor.compiled, policy.step = policy, spy
    observations, rewards, is_first = trajectory(30, [0])
    chosen = play(actor, observations, rewards, is_first)[0, :, 0].tolist()
    assert chosen[:6] == [0, 1, 2, 3, 4, 5]
    assert set(chosen[6:]) == {3, 4, 5}


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match=r"policy\.tokens is 2; it must be 1 or 3"):
        PolicyConfig(tokens=2)
    with pytest.raises(UserError, match=r"policy\.return_scale is 0"):
        PolicyConfig(return_scale=0)
    with pytest.raises(ValueError, match="'rolled' does not exist; there are: carried, rolling"):
        make_actor(make_policy(), "rolled", 20)
    with pytest.raises(ValueError, match="needs a context_length of at least 2"):
        make_actor(make_policy(), "rolling", 1)


@pytest.mark.parametrize("tokens", [1, 3])
def test_behaviour_cloning_does_not_heed_the_return(tokens):
    batch = make_batch(2, 6)
    for seen in (True, False):
        policy = make_policy(tokens=tokens, return_to_go=seen)
        loss, _ = policy.loss(**batch)
        other, _ = policy.loss(**batch | {"returns_to_go": batch["returns_to_go"] + 5})
        assert torch.equal(loss, other) != seen


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("backbone", MIXERS)
def test_hidden_observations_are_zero_for_the_network_whatever_they_are(backbone, tokens):
    hiding, seeing = (make_policy(backbone, tokens=tokens, hidden=h) for h in ([0, 3], None))
    batch = make_batch(2, 9)
    by_hand = batch["observations"].clone()
    by_hand[..., [0, 3]] = 0.5  # the mean
    expected, _ = seeing.loss(**batch | {"observations": by_hand})
    for value in (7.0, torch.nan, torch.inf):
        batch["observations"][..., [0, 3]] = value
        assert torch.equal(hiding.loss(**batch)[0], expected)
        for rollout in ROLLOUTS:
            steps = batch["observations"], batch["returns_to_go"], batch["resets"]
            found = play(make_actor(hiding, rollout, 4), *steps)
            assert torch.equal(found, play(make_actor(seeing, rollout, 4), by_hand, *steps[1:]))


def test_hidden_observations_are_some_of_those_that_there_are():
    for wrong in ([-1], [1, 1], ["a"], [True], [1.0], [[1]], "positions", "", 3, {"a": 1}):
        with pytest.raises(UserError, match=r"policy\.hidden is .*; it must be a list of obs"):
            PolicyConfig(hidden=wrong)
    for wrong in ([5], [0, 1, 2, 3, 4], "velocities"):  # the word is not an index
        with pytest.raises(UserError, match=r"policy\.hidden is .*have the indices 0 to 4, of wh"):
            make_policy(hidden=wrong)
    assert not make_policy(hidden=[]).hidden.any()
    assert "hidden" not in make_policy(hidden=[0]).state_dict()  # it is in the configuration


def test_a_hidden_return_is_not_shown_before_the_head():
    with pytest.raises(UserError, match="return_to_go is false"):
        PolicyConfig(return_to_go=False, return_before_head=True)
