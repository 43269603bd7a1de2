"""The fused step against the policy's own, float32 both: the same actions and states."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError
from torch import nn

from agents.acting import RollingActor, make_actor
from agents.backbones import MIXERS
from agents.policy import PolicyConfig, PolicyState, ReturnConditionedPolicy
from agents.step import fused as fused_module
from agents.step.fused import FusedPolicy, NotFusableError, fuse, obstacle

FUSABLE = ("min_gru", "min_lstm")
OBSERVATION_DIM, ACTION_DIM, TARGET = 5, 3, 30.0
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make_policy(
    backbone: str = "min_gru", d_model: int = 22, own: dict | None = None, **config
) -> ReturnConditionedPolicy:
    """With the default width, neither a row nor a block of the products comes out even."""
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        PolicyConfig(return_scale=10.0, **config),
        MIXERS[backbone][0](d_model=d_model, n_layer=2, **(own or {})),
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
    )
    policy.set_statistics(
        observation_mean=torch.linspace(-2.0, 3.0, OBSERVATION_DIM),
        observation_std=torch.linspace(0.5, 2.0, OBSERVATION_DIM),
        action_low=torch.tensor([-1.0, -3.0, 0.0]),
        action_high=torch.tensor([1.0, 5.0, 0.5]),
        target_return=TARGET,
    )
    for parameter in policy.parameters():  # away from the zeros and ones of an initialisation
        parameter.data += 0.2 * torch.randn_like(parameter)
    return policy.eval()


def episodes(batch: int, time: int, seed: int = 1) -> tuple[torch.Tensor, ...]:
    """Observations, rewards and is_first, (batch, time, ...); episodes begin at random times."""
    generator = torch.Generator().manual_seed(seed)
    observations = 2.0 * torch.randn(batch, time, OBSERVATION_DIM, generator=generator)
    is_first = torch.rand(batch, time, generator=generator) < 0.06
    is_first[:, 0] = True
    return observations, torch.rand(batch, time, generator=generator), is_first


def tensors(action: torch.Tensor, state: PolicyState) -> list[torch.Tensor]:
    return [action, *state.backbone, *state[1:]]


def assert_same_actions(
    found_actor, expected_actor, batch: int, time: int, seed: int = 1, relative: float = 1e-5
):
    observations, rewards, is_first = episodes(batch, time, seed)
    expected_state = expected_actor.initial_state(batch)
    found_state = found_actor.initial_state(batch)
    with torch.inference_mode():
        for t in range(time):
            step = observations[:, t], rewards[:, t]
            expected, expected_state = expected_actor.act(*step, expected_state, is_first[:, t])
            found, found_state = found_actor.act(*step, found_state, is_first[:, t])
            pairs = zip(tensors(found, found_state), tensors(expected, expected_state), strict=True)
            for left, right in pairs:
                scale = max(1.0, right.abs().max().item()) if right.is_floating_point() else 0.0
                torch.testing.assert_close(left, right, rtol=0, atol=relative * scale)


def assert_same_episodes(policy: ReturnConditionedPolicy, batch: int, time: int, seed: int = 1):
    assert_same_actions(FusedPolicy(policy), policy, batch, time, seed)


@pytest.mark.parametrize("backbone", FUSABLE)
@pytest.mark.parametrize("batch", [1, 2, 3, 17, 100])
def test_whole_episodes_are_those_of_the_policy(backbone, batch):
    assert_same_episodes(make_policy(backbone), batch, time=60)


@pytest.mark.parametrize("backbone", FUSABLE)
def test_two_states_restarted_in_turn_are_those_of_the_policy(backbone):
    policy = make_policy(backbone, timestep_embedding=True)
    fused, eager = RollingActor(policy, 6), RollingActor(policy, 6)
    assert isinstance(fused.compiled, FusedPolicy)
    eager.compiled = policy
    assert_same_actions(fused, eager, batch=9, time=40)


@settings(max_examples=30, deadline=None)
@given(
    backbone=st.sampled_from(FUSABLE),
    d_model=st.integers(9, 40),  # a layer norm of two or three channels magnifies any rounding
    own=st.fixed_dictionaries(
        {"expansion": st.integers(1, 3), "learnable_initial_state": st.booleans()}
    ),
    previous_action=st.booleans(),
    timestep_embedding=st.booleans(),
    token_norm=st.booleans(),
    returns=st.sampled_from([{}, {"return_before_head": True}, {"return_to_go": False}]),
    hidden=st.sampled_from([None, [1], [4, 0, 2]]),
    batch=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_every_variation_of_one_token(batch, seed, returns, **config):
    policy = make_policy(max_timestep=8, **config, **returns)
    # A layer norm over a few channels divides by a small deviation and so magnifies the rounding of
    # either form (6e-8), norm after norm: to 5e-5 at most where it was measured. Twice that is
    # allowed, of the largest number of each tensor or of 1.
    assert_same_actions(FusedPolicy(policy), policy, batch, 20, seed, relative=1e-4)


@pytest.mark.parametrize("batch", [31, 32, 50, 100])
def test_threads_share_the_rows_and_change_no_bit(batch):
    fused = FusedPolicy(make_policy())
    observations, rewards, is_first = episodes(batch, 5)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            state = fused.initial_state(batch)
            for t in range(5):
                step = observations[:, t], rewards[:, t], state, is_first[:, t]
                action, state = fused.act(*step)
            results.append(tensors(action, state))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for left, right in zip(other, results[0], strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("backbone", FUSABLE)
def test_either_takes_over_from_the_other_at_any_step(backbone):
    policy = make_policy(backbone, timestep_embedding=True)
    fused = FusedPolicy(policy)
    observations, rewards, is_first = episodes(4, 60)
    own_state = mixed_state = policy.initial_state(4)
    for t in range(60):
        actor = fused if t % 5 < 2 else policy
        step = observations[:, t], rewards[:, t]
        # without no_grad the policy hands over states that require gradients
        expected, own_state = policy.act(*step, own_state, is_first[:, t])
        found, mixed_state = actor.act(*step, mixed_state, is_first[:, t])
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_a_state_from_long_ago_is_still_what_it_was():
    fused = FusedPolicy(make_policy())
    observations, rewards, is_first = episodes(3, 12)
    states, actions = [fused.initial_state(3)], []
    for t in range(12):
        step = observations[:, t], rewards[:, t], states[-1], is_first[:, t]
        action, state = fused.act(*step)
        states.append(state)
        actions.append(action)
    for t in range(12):
        again, _ = fused.act(observations[:, t], rewards[:, t], states[t], is_first[:, t])
        assert torch.equal(again, actions[t])


def test_rows_do_not_meet_and_nan_stays_in_its_row():
    policy = make_policy()
    fused = FusedPolicy(policy)
    observations, rewards, is_first = (x[:, 0] for x in episodes(6, 1))
    clean, _ = fused.act(observations, rewards, fused.initial_state(6), is_first)
    observations[2, 1] = torch.nan
    found, state = fused.act(observations, rewards, fused.initial_state(6), is_first)
    assert found[2].isnan().all()
    assert all(layer[2].isnan().any() for layer in state.backbone[1:])
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[others], clean[others])


def test_hidden_observations_do_not_reach_the_kernel():
    policy = make_policy(hidden=[0, 3])
    fused = FusedPolicy(policy)
    observations, rewards, is_first = (x[:, 0] for x in episodes(6, 1))
    clean, _ = fused.act(observations, rewards, fused.initial_state(6), is_first)
    observations[:, 0], observations[:, 3] = torch.nan, torch.inf
    before = observations.clone()
    found, _ = fused.act(observations, rewards, fused.initial_state(6), is_first)
    assert torch.equal(found, clean)
    assert torch.equal(observations.nan_to_num(), before.nan_to_num())  # the caller's own


def test_threads_may_share_one():
    fused = FusedPolicy(make_policy(d_model=64))
    runs = [[x[:, 0] for x in episodes(9, 1, seed)] for seed in range(40)]

    def act(run) -> torch.Tensor:
        return fused.act(run[0], run[1], fused.initial_state(9), run[2])[0]

    alone = [act(run) for run in runs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(act, runs))
    assert all(map(torch.equal, alone, together))


def with_gelu() -> ReturnConditionedPolicy:
    policy = make_policy()
    policy.backbone.blocks[1].mlp[1] = nn.GELU().eval()
    return policy


def with_other_epsilon() -> ReturnConditionedPolicy:
    policy = make_policy()
    policy.backbone.blocks[1].mlp_norm.eps = 1e-3
    return policy


def with_hook() -> ReturnConditionedPolicy:
    policy = make_policy()
    policy.backbone.blocks[0].mixer.register_forward_hook(lambda *_: None)
    return policy


def without_bias() -> ReturnConditionedPolicy:
    policy = make_policy()
    policy.backbone.blocks[0].mixer.projection.bias = None
    return policy


def without_relu() -> ReturnConditionedPolicy:
    """Only known modules, with the same names and shapes."""
    policy = make_policy()
    policy.backbone.blocks[1].mlp[1] = nn.Identity().eval()
    return policy


OBSTACLES = {
    "three tokens": (lambda: make_policy(tokens=3), "3 tokens a step"),
    "training": (lambda: make_policy().train(), r"training mode; call eval\(\)"),
    "float64": (lambda: make_policy().double(), "torch.float64 on cpu"),
    "another device": (lambda: make_policy().to("meta"), "on meta"),
    "unknown module": (with_gelu, r"module backbone\.blocks\.1\.mlp\.1 is a GELU"),
    "epsilon": (with_other_epsilon, "differ in eps"),
    "hook": (with_hook, r"blocks\.0\.mixer has hooks"),
    "missing tensor": (without_bias, r"blocks\.0\.mixer\.projection\.bias"),
    "another function": (without_relu, "differ from those of the kernel"),
    **{
        name: (lambda name=name: make_policy(name), "MinGRU or MinLSTM throughout")
        for name in MIXERS
        if name not in FUSABLE
    },
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_the_kernel_does_not_compute_is_refused_and_acts_by_itself(name):
    make, message = OBSTACLES[name]
    policy = make()
    with pytest.raises(NotFusableError, match=message):
        FusedPolicy(policy)
    assert fuse(policy) is policy


def test_an_own_kind_of_policy_is_refused():
    class Cautious(ReturnConditionedPolicy):
        pass

    policy = make_policy()
    policy.__class__ = Cautious
    assert obstacle(policy) == "it is a Cautious, not a ReturnConditionedPolicy."


def test_the_default_policy_is_fused():
    policy = ReturnConditionedPolicy(
        PolicyConfig(), MIXERS["min_gru"][0](), observation_dim=11, action_dim=3
    )
    assert isinstance(fuse(policy.eval()), FusedPolicy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("observation", lambda a: a | {"observation": a["observation"].double()}),
        ("observation", lambda a: a | {"observation": a["observation"][:, 1:]}),
        ("reward", lambda a: a | {"reward": a["reward"][:1]}),
        ("is_first", lambda a: a | {"is_first": a["is_first"].float()}),
        (
            "state.target_return",
            lambda a: a | {"state": a["state"]._replace(target_return=torch.zeros(3))},
        ),
        ("previous_action", lambda a: a | {"state": a["state"]._replace(action=torch.zeros(2, 1))}),
        (
            "state",
            lambda a: a | {"state": a["state"]._replace(backbone=(torch.zeros(2, 9),) * 2)},
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_named(name, change):
    fused = FusedPolicy(make_policy())
    observations, rewards, is_first = (x[:, 0] for x in episodes(2, 1))
    arguments = {
        "observation": observations,
        "reward": rewards,
        "state": fused.initial_state(2),
        "is_first": is_first,
    }
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected "):
        fused.act(**change(arguments))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Unable to get host CPU features\nfor this processor"),
        ImportError("DLL load failed"),
        TypingError("Failed in nopython mode pipeline"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_cannot_be_built_is_one_line_of_the_log(error, monkeypatch, caplog):
    def build(*arguments):
        raise error

    monkeypatch.setattr(fused_module, "policy_step", build)
    policy = make_policy()
    with caplog.at_level("INFO"):
        assert fuse(policy) is policy
        assert make_actor(policy, "carried", 4) is policy
    assert len(caplog.records) == 2  # one for each call
    text = caplog.records[0].getMessage()
    assert "acts through PyTorch" in text and str(error).splitlines()[0] in text
    assert "\n" not in text
