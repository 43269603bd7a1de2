"""One battery over every registered backbone: whatever is added there is tested here.

A mixer of your own, in a module that calls agents.register_backbone, is tested by

    python -m pytest tests/agents/backbones/test_backbones.py --backbone-module=my.module -k NAME
"""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backbones import MIXERS, build_backbone, mixer_entry
from agents.backbones.block import Backbone
from agents.backbones.state import map_state, tensors_of
from common.errors import UserError

D_MODEL = 16
EMPTY = [name for name, (config, _) in MIXERS.items() if config.begins_empty]  # no step seen
LEARNED = [name for name in MIXERS if name not in EMPTY]
VARIANTS = [
    *MIXERS,
    "min_gru, convolution",
    *(f"{name}, learned start" for name in LEARNED),
    "min_gru, convolution, learned start",
]
ALL = pytest.mark.parametrize("name", VARIANTS)


def make(name: str, dtype: torch.dtype = torch.float64) -> Backbone:
    torch.manual_seed(0)
    learned = "learned start" in name
    config = MIXERS[name.split(",")[0]][0](
        d_model=D_MODEL,
        n_layer=2,
        convolution=4 if "convolution" in name else 0,
        learnable_initial_state=learned,
    )
    backbone = build_backbone(config)
    for start in starts(backbone).values():  # away from the zeros at which it is initialised
        torch.nn.init.normal_(start)
    return backbone.to(dtype).eval()


def starts(backbone: Backbone) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in backbone.named_parameters() if ".start." in name}


def inputs(batch: int, time: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, D_MODEL, generator=generator, dtype=torch.float64)
    return x, torch.rand(batch, time, generator=generator) < 0.15


def lived_state(backbone: Backbone, batch: int):
    """A state that is not zero: what the backbone remembers of five random steps."""
    x, _ = inputs(batch, 5, seed=2)
    _, state = backbone(x, backbone.initial_state(batch), torch.zeros(batch, 5, dtype=torch.bool))
    return map_state(torch.Tensor.detach, state)


def assert_same_state(left, right) -> None:
    for a, b in zip(tensors_of(left), tensors_of(right), strict=True):
        torch.testing.assert_close(a, b)


@ALL
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    time=st.integers(1, 24),
    seed=st.integers(0, 1000),
    cut=st.floats(0, 1),
)
def test_forward_equals_chunks_equals_steps(name, batch, time, seed, cut):
    backbone = make(name)
    x, resets = inputs(batch, time, seed)
    state = lived_state(backbone, batch)
    whole, whole_end = backbone(x, state, resets)

    chunks, chunk_state = [], state
    at = max(1, min(time - 1, round(cut * time)))
    for part in (slice(0, at), slice(at, time)):
        if x[:, part].shape[1]:
            y, chunk_state = backbone(x[:, part], chunk_state, resets[:, part])
            chunks.append(y)
    torch.testing.assert_close(torch.cat(chunks, 1), whole)
    assert_same_state(chunk_state, whole_end)

    steps, step_state = [], state
    for t in range(time):
        y, step_state = backbone.step(x[:, t], step_state, resets[:, t])
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), whole)
    assert_same_state(step_state, whole_end)


@ALL
def test_the_future_cannot_change_the_past(name):
    backbone = make(name)
    x, resets = inputs(2, 12)
    y, _ = backbone(x, backbone.initial_state(2), resets)
    later = x.clone()
    later[:, 7:] = 100.0
    changed, _ = backbone(later, backbone.initial_state(2), resets)
    assert torch.equal(changed[:, :7], y[:, :7])
    assert not torch.allclose(changed[:, 7:], y[:, 7:])


@ALL
def test_resets_isolate_the_episodes_of_one_row(name):
    backbone = make(name)
    x, _ = inputs(1, 14)
    resets = torch.zeros(1, 14, dtype=torch.bool)
    resets[0, 6] = True
    packed, end = backbone(x, lived_state(backbone, 1), resets)
    alone, alone_end = backbone(x[:, 6:], backbone.initial_state(1), resets[:, 6:])
    torch.testing.assert_close(packed[:, 6:], alone)
    assert_same_state(end, alone_end)
    # The state does matter to the steps before the reset, or the test would prove nothing.
    blank, _ = backbone(x, backbone.initial_state(1), resets)
    assert not torch.allclose(blank[:, :6], packed[:, :6])


@ALL
def test_rows_of_a_batch_are_independent(name):
    backbone = make(name)
    x, resets = inputs(3, 9)
    state = lived_state(backbone, 3)
    y, _ = backbone(x, state, resets)
    for row in range(3):
        own = map_state(lambda t, row=row: t[row : row + 1], state)
        alone, _ = backbone(x[row : row + 1], own, resets[row : row + 1])
        torch.testing.assert_close(alone, y[row : row + 1])


@ALL
@pytest.mark.parametrize("time", [1, 2, 7, 1000])
def test_gradients_are_finite_and_reach_every_parameter_and_the_state(name, time):
    backbone = make(name, torch.float32)
    x = inputs(2, time)[0].float()
    resets = torch.zeros(2, time, dtype=torch.bool)
    resets[0, 0] = True  # one row begins, the other goes on
    state = map_state(
        lambda t: t.float().requires_grad_() if t.is_floating_point() else t,
        lived_state(make(name), 2),
    )
    y, _ = backbone(x, state, resets)
    y.square().mean().backward()
    carried = [t for t in tensors_of(state) if t.requires_grad]
    for parameter in [*backbone.parameters(), *carried]:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert carried and all(t.grad.abs().sum() > 0 for t in carried)


@ALL
def test_float32_agrees_with_float64(name):
    exact, short = make(name), make(name, torch.float32)
    x, resets = inputs(2, 200)
    expected, _ = exact(x, exact.initial_state(2), resets)
    found, _ = short(x.float(), short.initial_state(2), resets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@ALL
def test_state_dict_round_trip(name):
    backbone, other = make(name), make(name)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(backbone.state_dict())
    x, resets = inputs(2, 5)
    y, _ = backbone(x, backbone.initial_state(2), resets)
    again, _ = other(x, other.initial_state(2), resets)
    assert torch.equal(y, again)


@ALL
def test_a_step_costs_the_same_at_any_time(name):
    """A step's state has the same size after 3 and after 300 steps: O(1) memory, and so time."""
    backbone = make(name)
    x, _ = inputs(2, 300)
    state = backbone.initial_state(2)
    sizes = []
    for t in range(300):
        _, state = backbone.step(x[:, t], state, torch.zeros(2, dtype=torch.bool))
        sizes.append([tensor.shape for tensor in tensors_of(state)])
    assert sizes[3] == sizes[-1]


@pytest.mark.parametrize("name", [name for name in VARIANTS if "learned start" in name])
def test_the_gradient_of_a_learned_start_is_exact_and_zeros_are_as_without(name):
    backbone = make(name)
    x, resets = inputs(2, 9)
    resets[0, 0] = resets[1, 4] = True
    state = lived_state(backbone, 2)
    learned = starts(backbone)

    def run(*values):
        chosen = dict(zip(learned, values, strict=True))
        y, end = torch.func.functional_call(backbone, chosen, (x, state, resets))
        return y, *tensors_of(end)

    assert torch.autograd.gradcheck(run, tuple(learned.values()), fast_mode=True)

    for start in learned.values():
        torch.nn.init.zeros_(start)
    plain = make(name.replace(", learned start", ""))
    for found, expected in zip(
        run(*learned.values()), tensors_of(plain(x, state, resets)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", EMPTY)
def test_a_backbone_that_begins_with_no_step_seen_has_no_start_to_learn(name):
    with pytest.raises(UserError, match=f"learnable_initial_state is true, but backbone '{name}'"):
        MIXERS[name][0](learnable_initial_state=True)


WRONG_STATES = {
    "another batch size": lambda backbone, other: backbone.initial_state(5),
    "another backbone": lambda backbone, other: other.initial_state(2),
    "fewer layers": lambda backbone, other: backbone.initial_state(2)[:1],
    "nothing": lambda backbone, other: None,
}


@ALL
@pytest.mark.parametrize("wrong", WRONG_STATES)
def test_a_wrong_state_is_one_sentence(name, wrong):
    backbone = make(name)
    other = make("gru" if name.startswith("lstm") else "lstm")
    state = WRONG_STATES[wrong](backbone, other)
    x, resets = inputs(2, 3)
    sentence = (
        rf"the state given to backbone '{name.split(',')[0]}' is .+; expected \(+2, .+: take it "
        r"from initial_state\(2\) of the same backbone, or from its step before\."
    )
    for run in (
        lambda: backbone(x, state, resets),
        lambda: backbone.step(x[:, 0], state, resets[:, 0]),
    ):
        with pytest.raises(ValueError) as raised:
            run()
        assert re.fullmatch(sentence, str(raised.value)), raised.value


def test_an_unknown_backbone_is_refused_with_a_list():
    with pytest.raises(UserError, match=r"mean 'min_gru'\?\); there are: min_gru, min_lstm"):
        mixer_entry("min_grue")


def test_the_settings_of_one_backbone_do_not_build_another():
    with pytest.raises(UserError, match=r"name is 'gru', but these are the settings of 'min_gru'"):
        MIXERS["min_gru"][0](name="gru")
