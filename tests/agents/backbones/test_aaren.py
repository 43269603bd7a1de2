"""Aaren against softmax attention whose query is a learned token."""

import pytest
import torch
from torch import nn

from agents.backbones.aaren import Aaren, AarenConfig
from common.errors import UserError

D_MODEL = 16


def make(n_head: int, dtype: torch.dtype = torch.float64, sharpness: float = 1.0) -> Aaren:
    torch.manual_seed(0)
    mixer = Aaren(AarenConfig(d_model=D_MODEL, n_head=n_head))
    with torch.no_grad():
        mixer.query_token.mul_(sharpness)
    return mixer.to(dtype)


def attention(mixer: Aaren) -> nn.MultiheadAttention:
    """PyTorch's attention with the same weights."""
    peer = nn.MultiheadAttention(D_MODEL, mixer.n_head, batch_first=True)
    projections = [mixer.query, mixer.key, mixer.value]
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        peer.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
    peer.out_proj.load_state_dict(mixer.output.state_dict())
    return peer.to(mixer.query_token.dtype)


def attend(peer: nn.MultiheadAttention, token, x, resets) -> torch.Tensor:
    """Softmax over the steps of the own episode up to each step, the token as every query."""
    episode = resets.cumsum(1)
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
    hidden = ~(causal & (episode.unsqueeze(2) == episode.unsqueeze(1)))
    mask = hidden.repeat_interleave(peer.num_heads, dim=0)
    return peer(token.expand_as(x), x, x, attn_mask=mask, need_weights=False)[0]


@pytest.mark.parametrize("n_head", [1, 4])
@pytest.mark.parametrize("sharpness", [1.0, 60.0])
def test_values_and_gradients_are_those_of_softmax_attention(n_head, sharpness):
    mixer = make(n_head, sharpness=sharpness)
    peer = attention(mixer)
    token = mixer.query_token.detach().clone().requires_grad_()
    torch.manual_seed(1)
    x = torch.randn(3, 70, D_MODEL, dtype=torch.float64)
    resets = torch.rand(3, 70) < 0.06
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, _ = mixer(own, mixer.initial_state(3), resets)
    expected = attend(peer, token, other, resets)
    torch.testing.assert_close(y, expected)

    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    projections = [mixer.query, mixer.key, mixer.value]
    torch.testing.assert_close(own.grad, other.grad)
    torch.testing.assert_close(mixer.query_token.grad, token.grad)
    torch.testing.assert_close(
        torch.cat([p.weight.grad for p in projections]), peer.in_proj_weight.grad
    )
    torch.testing.assert_close(
        torch.cat([p.bias.grad for p in projections]), peer.in_proj_bias.grad
    )
    torch.testing.assert_close(mixer.output.weight.grad, peer.out_proj.weight.grad)


def test_gradients_flow_through_a_carried_state():
    """Two pieces give the gradients of the whole, though the maximum between them is a constant."""
    mixer = make(2, sharpness=20.0)
    torch.manual_seed(1)
    x = torch.randn(2, 30, D_MODEL, dtype=torch.float64)
    resets = torch.zeros(2, 30, dtype=torch.bool)
    gradients = []
    for pieces in ([30], [11, 19], [1] * 30):
        own = x.clone().requires_grad_()
        state, outputs = mixer.initial_state(2), []
        for part, first in zip(own.split(pieces, 1), resets.split(pieces, 1), strict=True):
            y, state = mixer(part, state, first)
            outputs.append(y)
        torch.cat(outputs, 1)[:, 12:].pow(3).sum().backward()
        gradients.append(own.grad)
    assert gradients[0][:, :11].abs().max() > 1e-6
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_float32_is_exact_over_long_sequences_of_far_apart_scores():
    """Scores of hundreds would overflow float32's exponential if the maximum were not kept."""
    exact, short = make(1, sharpness=2000.0), make(1, torch.float32, sharpness=2000.0)
    torch.manual_seed(2)
    x = torch.randn(1, 20_000, D_MODEL).double()
    resets = torch.zeros(1, 20_000, dtype=torch.bool)
    resets[0, 12_345] = True
    scores, _ = exact._scores_and_values(x, torch.float64)
    assert scores.abs().max() > 500
    expected, _ = exact(x, exact.initial_state(1), resets)
    found, _ = short(x.float(), short.initial_state(1), resets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_far_larger_score_of_another_episode_harms_nothing():
    """The ratio of two episodes' exponentials overflows; nothing may come of it."""
    mixer = make(1, torch.float32, sharpness=300.0)
    x = torch.randn(1, 2, D_MODEL)
    scores, _ = mixer._scores_and_values(x, torch.float32)
    if scores[0, 0, 0] < scores[0, 1, 0]:
        x = x.flip(1)
    x = (x * 100).requires_grad_()
    scores, _ = mixer._scores_and_values(x, torch.float32)
    assert scores[0, 0, 0] - scores[0, 1, 0] > 200
    y, _ = mixer(x, mixer.initial_state(1), torch.tensor([[True, True]]))
    y.square().sum().backward()
    torch.testing.assert_close(y[:, 1], mixer.output(mixer.value(x[:, 1])))
    assert torch.isfinite(x.grad).all()


def test_only_the_query_token_is_added_to_a_transformer_layer():
    """The paper, section 4.5: 3,152,384 parameters in a Transformer and 3,152,896 in an Aaren."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    layer = nn.TransformerEncoderLayer(512, 8, 2048)
    mixer = Aaren(AarenConfig(d_model=512, n_head=8))
    assert count(layer) == 3_152_384
    assert count(layer) - count(layer.self_attn) + count(mixer) == 3_152_896


def test_under_autocast_the_state_stays_in_float32():
    mixer = make(2, torch.float32)
    x, resets = torch.randn(2, 40, D_MODEL), torch.zeros(2, 40, dtype=torch.bool)
    expected, _ = mixer(x, mixer.initial_state(2), resets)
    with torch.autocast("cpu", torch.bfloat16):
        found, state = mixer(x, mixer.initial_state(2), resets)
    assert all(part.dtype == torch.float32 for part in state)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("n_head", [0, 3])
def test_heads_that_do_not_divide_d_model_are_refused(n_head):
    with pytest.raises(UserError, match=rf"n_head is {n_head}(, which does not|; it must be)"):
        AarenConfig(d_model=D_MODEL, n_head=n_head)
