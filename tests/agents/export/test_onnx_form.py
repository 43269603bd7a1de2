"""A policy's ONNX file acts in ONNX Runtime as the policy itself does, for every backbone."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from programs import ROOT

from agents import Actor
from agents.acting import ROLLOUTS
from agents.backbones import MIXERS
from agents.backbones.min_gru import MinGRU
from agents.checkpoint import RunDescription, save_description, save_policy
from agents.export.__main__ import ExportConfig, export
from agents.export.onnx_form import KEY, OPSET, Step, onnx_of
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.errors import UserError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")

CONTEXT = 7
LOW, HIGH = [-1.0, 0.0], [2.0, 0.4]
EVERY_OPTION = {
    "timestep_embedding": True, "max_timestep": 50, "token_norm": True, "return_before_head": True,
    "hidden": [1, 3],
}  # fmt: skip
THREE_TOKENS = {"tokens": 3, "timestep_embedding": True}
CLONING = {"return_to_go": False, "previous_action": False}
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def make_policy(backbone="min_gru", n_layer=2, options=None, **config) -> ReturnConditionedPolicy:
    """A policy of random weights, every bias, norm and start state among them."""
    torch.manual_seed(0)
    backbone_config = MIXERS[backbone][0](d_model=24, n_layer=n_layer, **(options or {}))
    policy = ReturnConditionedPolicy(
        PolicyConfig(**config), backbone_config, observation_dim=5, action_dim=2
    ).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    policy.set_statistics(
        observation_mean=torch.randn(5), observation_std=torch.rand(5) + 0.5,
        action_low=torch.tensor(LOW), action_high=torch.tensor(HIGH), target_return=700.0,
    )  # fmt: skip
    return policy


def load(content: bytes):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(content, options)


def assert_acts_alike(content, policy, rollout, rows, steps, *, target=None, begin=0):
    """Compares steps with resets of single rows; the first step's state is all `begin`."""
    session = load(content)
    actor = Actor(policy, rollout=rollout, context_length=CONTEXT, target_return=target)
    actor.reset(rows)
    given = {} if target is None else {"target_return": target}
    inputs = [i for i in session.get_inputs() if i.name.startswith("state_")]
    with np.errstate(invalid="ignore"):
        states = [np.full((rows, *i.shape[1:]), begin).astype(TYPES[i.type]) for i in inputs]
    generator, spread = np.random.default_rng(0), 0.0
    for step in range(steps):
        observation = generator.normal(size=(rows, 5)).astype(np.float32)
        if policy.config.hidden:
            observation[:, 1] = np.nan
        reward = generator.normal(size=rows).astype(np.float32)
        is_first = (generator.random(rows) < 0.02) | (step == 0)
        given |= {"observation": observation, "reward": reward, "is_first": is_first}
        given |= {i.name: state for i, state in zip(inputs, states, strict=True)}
        action, *states = session.run(None, given)
        expected = actor.act(observation, reward, is_first)
        assert np.abs((action - expected) / np.subtract(HIGH, LOW)).max() < 1e-5, step
        assert (action >= np.float32(LOW)).all() and (action <= np.float32(HIGH)).all()
        spread = max(spread, np.abs(action - action.mean(0)).max(), abs(action[0, 0]))
    assert spread > 0.01, "the actions differ, so that equal ones mean something"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run with every option of the policy, and its export."""
    folder = tmp_path_factory.mktemp("run")
    config = MIXERS["min_gru"][0](d_model=24, n_layer=1, learnable_initial_state=True)
    policy = make_policy("min_gru", 1, {"learnable_initial_state": True}, **EVERY_OPTION)
    evaluation = {"rollout": "carried", "context_length": CONTEXT, "held": True}
    save_description(folder, policy, config, RunDescription({"id": "robot/logs-v0"}, evaluation))
    save_policy(folder, policy, 1500)
    assert export(folder, folder / "robot" / "policy.onnx") == [folder / "robot" / "policy.onnx"]
    return policy, folder / "robot" / "policy.onnx"


@pytest.mark.parametrize("rows", [1, 7])
def test_a_thousand_steps_with_resets_equal_those_of_the_policy(exported, rows):
    policy, path = exported
    assert_acts_alike(path.read_bytes(), policy, "carried", rows, 1000)


def test_each_row_may_have_a_target_of_its_own_and_any_state_at_first(exported):
    policy, path = exported
    target = np.linspace(-500, 3000, 7, dtype=np.float32)
    assert_acts_alike(path.read_bytes(), policy, "carried", 7, 60, target=target, begin=np.nan)


def test_the_file_says_what_it_is_and_nothing_of_this_machine(exported):
    policy, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import] == [OPSET]
    assert "next_state_k" in model.doc_string
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}[KEY])
    assert metadata == {
        "backbone": "min_gru", "rollout": "carried", "context_length": None, "target_return": 700.0,
        "held": True,
        "observation_dim": 5, "action_dim": 2, "action_low": LOW,
        "action_high": policy.action_high.tolist(), "opset": OPSET, "updates": 1500,
        "dataset": {"id": "robot/logs-v0", "sha256": None, "environment_id": None},
    }  # fmt: skip
    content = path.read_bytes()
    assert str(ROOT).encode() not in content and b"site-packages" not in content
    names = [value.name for value in model.graph.input]
    states = [f"state_{i}" for i in range(4)]
    assert names == ["observation", "reward", "is_first", "target_return", *states]
    assert [o.name for o in model.graph.output] == ["action", *(f"next_{s}" for s in states)]


def test_a_loop_that_keeps_the_state_alone_acts_where_pytorch_cannot_be_imported(exported):
    policy, path = exported
    program = """
import sys
for name in ("torch", "numba", "agents", "common", "onnx"):
    sys.modules[name] = None
import numpy as np, onnxruntime
policy = onnxruntime.InferenceSession("policy.onnx")
names = [i.name for i in policy.get_inputs() if i.name.startswith("state_")]
types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
state = [np.zeros((1, *i.shape[1:]), types[i.type]) for i in policy.get_inputs()[3:]]
for step in range(3):
    action, *state = policy.run(None, {
        "observation": np.full((1, 5), step, np.float32), "reward": np.ones(1, np.float32),
        "is_first": np.array([step == 0]), **dict(zip(names, state)),
    })
    print(*action[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=path.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    actor = Actor(policy)
    expected = [actor.act(np.full(5, step), 1.0) for step in range(3)]
    found = [list(map(float, line.split())) for line in done.stdout.splitlines()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rollout", ["carried", "rolling"])
@pytest.mark.parametrize("backbone", MIXERS)
def test_what_is_exported_acts_as_the_actor_before_the_exporter_sees_it(backbone, rollout):
    policy = make_policy(backbone)
    step, actor = Step(policy, rollout, CONTEXT), Actor(policy, rollout=rollout, context_length=7)
    actor.reset(3)
    generator, target, state = torch.Generator().manual_seed(0), torch.tensor([700.0]), None
    for count in range(30):
        observation = torch.randn(3, 5, generator=generator)
        reward = torch.randn(3, generator=generator)
        is_first = (torch.rand(3, generator=generator) < 0.1) | (count == 0)
        state = step.initial_state(3) if state is None else state
        with torch.inference_mode():
            action, state = step(observation, reward, is_first, target, state)
        expected = actor.act(observation.numpy(), reward.numpy(), is_first.numpy())
        np.testing.assert_allclose(action.numpy(), expected, atol=4e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("backbone", MIXERS)
def test_a_thousand_steps_of_every_backbone_and_rollout_equal_those_of_the_policy(
    backbone, rollout
):
    policy = make_policy(backbone)
    content = onnx_of(policy, rollout, CONTEXT)
    assert_acts_alike(content, policy, rollout, 1, 1000)
    assert_acts_alike(content, policy, rollout, 7, 1000, begin=np.nan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "options", "config", "rollout"),
    [
        ("attention", {"n_head": 2, "context_length": 12}, THREE_TOKENS, "window"),
        ("aaren", {"n_head": 2}, THREE_TOKENS, "rolling"),
        ("s4d", {"convolution": 3, "learnable_initial_state": True}, EVERY_OPTION, "rolling"),
        ("lstm", {"learnable_initial_state": True}, EVERY_OPTION, "window"),
        ("min_lstm", {"expansion": 2}, CLONING, "carried"),
        ("mamba", {"learnable_initial_state": True}, CLONING, "window"),
    ],
)
def test_the_options_of_a_policy_are_in_the_file(backbone, options, config, rollout):
    policy = make_policy(backbone, 2, options, **config)
    content = onnx_of(policy, rollout, CONTEXT)
    assert_acts_alike(content, policy, rollout, 7, 300, begin=np.nan)
    optional = [i.name for i in load(content).get_overridable_initializers()]
    assert optional == (["target_return"] if policy.config.return_to_go else [])


# -- what has no form ---------------------------------------------------------------------------


class Branching(MinGRU):
    """Its step depends on numbers in a way that no graph can."""

    def step(self, x, state):
        return super().step(x if x.sum() > 0 else -x, state)


class Unlike(MinGRU):
    """Its step is another one while it is exported."""

    def step(self, x, state):
        return super().step(x + 1.0 if torch.compiler.is_compiling() else x, state)


@pytest.mark.parametrize(
    ("mixer", "sentence"),
    [
        (Branching, r"exporter to ONNX fails on its backbone Branching \(.+\); choose another"),
        pytest.param(
            Unlike, "backbone Unlike acts otherwise than the policy; ch", marks=pytest.mark.slow
        ),
    ],
)
def test_a_backbone_without_a_form_is_one_sentence(mixer, sentence):
    policy = make_policy(n_layer=1)
    policy.backbone.blocks[0].mixer.__class__ = mixer
    with pytest.raises(UserError, match=sentence) as raised:
        onnx_of(policy, "carried", CONTEXT)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rollout", "context", "found"),
    [
        ("dreaming", 20, "rollout=dreaming and context_length=20"),
        ("rolling", 1, "rollout=rolling and context_length=1"),
        ("window", None, "rollout=window and context_length=None"),
    ],
)
def test_a_rollout_without_a_form_is_one_sentence(rollout, context, found):
    with pytest.raises(UserError, match=f"scored with {found}, which has no form in ONNX"):
        onnx_of(make_policy(n_layer=1), rollout, context)


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_one_sentence(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r'needs an extra that is not installed: .+\.\[onnx\]"'):
        onnx_of(make_policy(n_layer=1), "carried", CONTEXT)


@pytest.mark.parametrize("to", ["policy.pt", "policy", "policy.onnx.zip"])
def test_another_ending_is_one_sentence(to):
    with pytest.raises(
        UserError, match=rf"^to is '{to}'; give a file that ends in \.npz or \.onnx"
    ):
        ExportConfig("run", to)
