"""Attention against a plain masked softmax, and against transformers' Decision Transformer."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.acting import WindowActor
from agents.backbones.attention import Attention, AttentionConfig
from agents.backbones.state import restart
from agents.policy import ReturnConditionedPolicy
from common.errors import UserError
from configs.launch.overrides import FOLDER, to_dataclass
from configs.schema import register

OBSERVATION_DIM, ACTION_DIM, RETURN_SCALE = 11, 3, 1000.0


def make_mixer(n_head: int, context_length: int, dropout: float = 0.0) -> Attention:
    torch.manual_seed(0)
    config = AttentionConfig(
        d_model=8, n_head=n_head, context_length=context_length, dropout=dropout
    )
    return Attention(config).double()


def masked_softmax(mixer: Attention, x: torch.Tensor, resets: torch.Tensor) -> torch.Tensor:
    """Attention as its definition says: each token on its own, a softmax over what it sees."""
    weight, bias = mixer.projection.weight, mixer.projection.bias
    query, key, value = (x @ weight.T + bias).split(8, dim=-1)
    rows = []
    for row in range(len(x)):
        episode = resets[row].cumsum(0)
        for t in range(x.shape[1]):
            seen = [
                j
                for j in range(max(0, t - mixer.context_length + 1), t + 1)
                if episode[j] == episode[t]
            ]
            heads = []
            for head in torch.arange(8).view(mixer.n_head, -1):
                q, k, v = query[row, t, head], key[row][seen][:, head], value[row][seen][:, head]
                heads.append(torch.softmax(k @ q / len(head) ** 0.5, dim=0) @ v)
            rows.append(torch.cat(heads))
    y = torch.stack(rows).view_as(x)
    return y @ mixer.output.weight.T + mixer.output.bias


@settings(max_examples=40, deadline=None)
@given(
    n_head=st.sampled_from([1, 2, 4]),
    context_length=st.integers(1, 7),
    batch=st.integers(1, 3),
    time=st.integers(1, 18),
    cut=st.integers(0, 18),
    resets=st.sampled_from([0.0, 0.1, 0.4]),
    seed=st.integers(0, 1000),
)
def test_a_plain_masked_softmax_agrees(n_head, context_length, batch, time, cut, resets, seed):
    mixer = make_mixer(n_head, context_length)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    resets = torch.rand(batch, time, generator=generator) < resets
    weights = torch.randn(batch, time, 8, generator=generator, dtype=torch.float64)
    leaves = [x, *mixer.parameters()]
    expected = masked_softmax(mixer, x, resets)
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)

    # In two pieces, the second with the keys and values that the first left behind.
    state, pieces = mixer.initial_state(batch), []
    for part in (slice(0, min(cut, time)), slice(min(cut, time), time)):
        if x[:, part].shape[1]:
            y, state = mixer(x[:, part], state, resets[:, part])
            pieces.append(y)
    y = torch.cat(pieces, 1)
    torch.testing.assert_close(y, expected)
    found = torch.autograd.grad((y * weights).sum(), leaves)
    for gradient, expected_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)

    state, steps = mixer.initial_state(batch), []
    for t in range(time):
        state = restart(state, mixer.initial_state(batch), resets[:, t])
        y, state = mixer.step(x[:, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), expected)


def test_the_state_holds_the_own_episode_and_no_more():
    mixer = make_mixer(2, 4)
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[1, 7] = True
    _, (keys, values, length) = mixer(x, mixer.initial_state(2), resets)
    assert length.tolist() == [4, 2]
    for part in (keys, values):
        assert part.shape == (2, 4, 8)
        assert (part[1, :2] == 0).all() and (part[0] != 0).all() and (part[1, 2:] != 0).all()


def test_dropout_of_attention_weights_is_for_training_only():
    mixer, x = make_mixer(2, 4, dropout=0.5), torch.randn(2, 6, 8, dtype=torch.float64)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    first, second = (mixer.train()(x, mixer.initial_state(2), resets)[0] for _ in range(2))
    assert not torch.allclose(first, second)
    first, second = (mixer.eval()(x, mixer.initial_state(2), resets)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("n_head", [3, 0, -1])
def test_heads_that_do_not_divide_the_width_are_refused(n_head):
    with pytest.raises(
        UserError, match=rf"backbone\.n_head is {n_head}(, which does not divide|; it must be at)"
    ):
        AttentionConfig(n_head=n_head)


def test_a_context_without_a_token_is_refused():
    with pytest.raises(UserError, match=r"backbone\.context_length is 0; it must be at least 1"):
        AttentionConfig(context_length=0)


# -- Decision Transformer ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def decision_transformers():
    """The policy of experiment=decision_transformer, and transformers' with the same weights."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    register()
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        config = to_dataclass(compose("train", ["experiment=decision_transformer"]))
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        config.policy, config.backbone, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM
    )
    # Everything else is as transformers has it by default: one head, three layers, width 128, ...
    peer = DecisionTransformerModel(
        DecisionTransformerConfig(state_dim=OBSERVATION_DIM, act_dim=ACTION_DIM, max_ep_len=1000)
    )
    with torch.no_grad():
        for parameter in peer.parameters():  # its own are so small that little would depend on them
            parameter.add_(0.1 * torch.randn_like(parameter))
        # Left over from GPT-2: Decision Transformer has no position embedding, and asks for the
        # first one at every token.
        peer.encoder.wpe.weight.zero_()
    policy.load_state_dict(counterparts(peer, torch.Tensor.detach), strict=False)
    policy.set_statistics(
        observation_mean=torch.full((OBSERVATION_DIM,), 0.5),
        observation_std=torch.full((OBSERVATION_DIM,), 2.0),
        action_low=-torch.ones(ACTION_DIM),
        action_high=torch.ones(ACTION_DIM),
        target_return=3600.0,
    )
    return policy.double().eval(), peer.double().eval(), config.protocol.context_length


def counterparts(peer, read) -> dict[str, torch.Tensor]:
    """What `read` says of each parameter of transformers' model, under our parameter's name."""
    found = {}

    def take(name: str, module: torch.nn.Module, transpose: bool = False) -> None:
        found[f"{name}.weight"] = read(module.weight).T if transpose else read(module.weight)
        found[f"{name}.bias"] = read(module.bias)

    take("return_embedding", peer.embed_return)
    take("observation_embedding", peer.embed_state)
    take("action_embedding", peer.embed_action)
    found["timestep_embedding.weight"] = read(peer.embed_timestep.weight)
    take("token_norm.0", peer.embed_ln)
    for i, block in enumerate(peer.encoder.h):
        take(f"backbone.blocks.{i}.mixer_norm", block.ln_1)
        take(f"backbone.blocks.{i}.mixer.projection", block.attn.c_attn, transpose=True)
        take(f"backbone.blocks.{i}.mixer.output", block.attn.c_proj, transpose=True)
        take(f"backbone.blocks.{i}.mlp_norm", block.ln_2)
        take(f"backbone.blocks.{i}.mlp.0", block.mlp.c_fc, transpose=True)
        take(f"backbone.blocks.{i}.mlp.2", block.mlp.c_proj, transpose=True)
    take("backbone.norm", peer.encoder.ln_f)
    take("head", peer.predict_action[0])
    return found


def ask(peer, policy, observations, actions, returns_to_go, timesteps) -> torch.Tensor:
    return peer(
        states=(observations - policy.observation_mean) / policy.observation_std,
        actions=actions,
        returns_to_go=returns_to_go.unsqueeze(-1) / RETURN_SCALE,
        timesteps=timesteps,
    ).action_preds


def test_every_weight_has_its_counterpart(decision_transformers):
    policy, peer, _ = decision_transformers
    theirs = counterparts(peer, torch.Tensor.detach)
    assert theirs.keys() == {name for name, _ in policy.named_parameters()}


def test_a_window_has_the_actions_and_gradients_of_transformers(decision_transformers):
    policy, peer, steps = decision_transformers
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(3, steps, OBSERVATION_DIM, generator=generator).double()
    actions = torch.tanh(torch.randn(3, steps, ACTION_DIM, generator=generator)).double()
    returns_to_go = 3600.0 * torch.rand(3, steps, generator=generator).double()
    timesteps = torch.tensor([[0], [333], [980]]) + torch.arange(steps)
    resets = torch.zeros(3, steps, dtype=torch.bool)
    resets[:, 0] = True
    mask = torch.ones(3, steps, dtype=torch.bool)

    expected = ask(peer, policy, observations, actions, returns_to_go, timesteps)
    before = torch.cat([torch.full_like(actions[:, :1], 9.0), actions[:, :-1]], 1)
    blank = policy.backbone.initial_state(3)
    found, _ = policy(observations, returns_to_go, before, timesteps, resets, blank)
    torch.testing.assert_close(found, expected)
    assert found.std() > 0.1  # far from constant

    policy.zero_grad()
    peer.zero_grad()
    inputs = {"observations": observations, "returns_to_go": returns_to_go}
    loss, _ = policy.loss(actions, mask, timesteps=timesteps, resets=resets, **inputs)
    loss.backward()
    (expected.float() - actions).square().mean().backward()
    wanted = counterparts(peer, lambda parameter: parameter.grad)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], rtol=1e-5, atol=1e-8, msg=lambda m, name=name: name + m
        )


def test_an_episode_is_acted_as_with_transformers(decision_transformers):
    """30 steps, so that the window begins to move: Decision Transformer's own way to act."""
    policy, peer, context_length = decision_transformers
    actor, steps = WindowActor(policy, context_length), 30
    observations = torch.randn(1, steps, OBSERVATION_DIM, dtype=torch.float64)
    rewards = 50.0 * torch.rand(1, steps, dtype=torch.float64)
    actions = torch.zeros(1, steps, ACTION_DIM, dtype=torch.float64)
    returns_to_go = 3600.0 - rewards.cumsum(1) + rewards[:, :1]
    state = actor.initial_state(1)
    with torch.inference_mode():
        for t in range(steps):
            window = slice(max(0, t + 1 - context_length), t + 1)
            expected = ask(
                peer,
                policy,
                observations[:, window],
                actions[:, window],
                returns_to_go[:, window],
                torch.arange(steps)[None, window],
            )
            action, state = actor.act(
                observations[:, t], rewards[:, t], state, torch.tensor([t == 0])
            )
            torch.testing.assert_close(action, expected[:, -1])
            actions[:, t] = action
