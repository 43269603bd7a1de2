"""No value of any key, however hostile, ends in a traceback or is accepted as nonsense."""

import math
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agents.acting import make_actor
from agents.backbones import MIXERS
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.checks import check_fields, choice, number
from common.errors import UserError
from configs.launch import machine
from configs.launch.machine import check_memory, resolve_precision
from configs.launch.overrides import check, quoted
from configs.schema import EvalConfig, TrainConfig, register, resolve_evaluation
from envs.behaviors.collect import CollectConfig
from envs.behaviors.measure import MeasureConfig
from envs.behaviors.train import TrainBehaviorConfig
from envs.data.batches import make_batches
from envs.data.episodes import Episodes
from envs.data.inspect import InspectConfig
from envs.data.sources import DatasetConfig
from envs.data.store import StoreConfig
from envs.tasks import DatasetInfo
from eval import resolve

ROOT = Path(__file__).parents[2]
COMMANDS = (CollectConfig, MeasureConfig, TrainBehaviorConfig, InspectConfig, StoreConfig)
HOSTILE = (0, -1, math.nan, math.inf, -math.inf, 1e300, 2**64, "", " ", "foo")


def dataclasses_of(cls: type) -> list[type]:
    """A configuration class and those of its fields, the classes of all backbones among them."""
    nested = [hint for hint in get_type_hints(cls).values() if is_dataclass(hint)]
    return [cls, *(found for hint in nested for found in dataclasses_of(hint))]


ROOTS = (TrainConfig, EvalConfig, *COMMANDS, *(config for config, _ in MIXERS.values()))
CONFIGS = list(dict.fromkeys(found for cls in ROOTS for found in dataclasses_of(cls)))
KEYS = [(cls, item) for cls in CONFIGS for item in fields(cls)]
IDS = [f"{cls.__name__}.{item.name}" for cls, item in KEYS]


def kind_of(cls: type, name: str):
    hint = get_type_hints(cls)[name]
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is list:
        return kinds[0]
    if kinds and get_origin(kinds[0]) is list:
        return get_args(kinds[0])[0]
    return kinds[0] if kinds else hint


def filled(cls: type) -> dict:
    """Values for the keys that have no default."""
    required = {}
    for item in fields(cls):
        if item.default is MISSING and item.default_factory is MISSING:
            required[item.name] = item.metadata.get("options", ["builtin"])[0]
        elif item.default == "???":
            hint = get_type_hints(cls)[item.name]
            nested = MIXERS["min_gru"][0] if item.name == "backbone" else hint
            required[item.name] = nested(**filled(nested)) if is_dataclass(hint) else "run"
    return required


@pytest.mark.parametrize(("cls", "item"), KEYS, ids=IDS)
def test_every_number_has_limits_on_both_sides_or_one_that_excludes_nonsense(cls, item):
    if kind_of(cls, item.name) in (int, float):
        limits = item.metadata.get("limits")
        assert limits or "options" in item.metadata, "declare it with number(...)"
        if kind_of(cls, item.name) is int and limits:
            assert {"at least", "at most"} <= limits.keys()


@pytest.mark.parametrize(("cls", "item"), KEYS, ids=IDS)
def test_no_hostile_value_is_a_traceback(cls, item):
    schema = OmegaConf.structured(cls(**filled(cls)))
    hint = get_type_hints(cls)[item.name]
    lists = isinstance(OmegaConf.to_container(schema)[item.name], list) or "list[" in str(hint)
    given_values = [[value] if lists else value for value in HOSTILE]
    if hint is Any:  # a list or a word
        given_values += [[value] for value in HOSTILE]
    for given in given_values:
        try:  # as the command line does it
            config = OmegaConf.to_object(OmegaConf.merge(schema, {item.name: given}))
        except UserError as error:
            assert item.name in str(error) and "\n" not in str(error)
            continue
        except OmegaConfBaseException:
            continue  # another type: a sentence of configs.launch.overrides
        kept = getattr(config, item.name)
        for element in kept if isinstance(kept, list) else [kept]:
            if isinstance(element, float | int):
                assert math.isfinite(element) and abs(element) <= 1e30
            assert element != "" and element != " "


@pytest.mark.parametrize(("cls", "item"), KEYS, ids=IDS)
def test_a_wrong_type_in_a_file_is_one_sentence(cls, item):
    """Python, and so config.json of somebody else's run, does not convert as OmegaConf does."""
    if kind_of(cls, item.name) not in (int, float, str, bool, Any):
        return
    for value in ([[1]], {"a": 1}, object()):
        with pytest.raises(UserError, match=item.name):
            cls(**filled(cls) | {item.name: value})


# -- legal, so it runs ------------------------------------------------------------------------

TINY = {
    "backbone": {"d_model": 4, "n_layer": 1},
    "protocol": {"batch_steps": 32, "context_length": 4},
    "policy": {"timestep_embedding": True},
    "trainer": {},
}
# Whose upper end does not fit into memory, or diverges: sentences of their own.
LARGE = {
    "learning_rate",
    "weight_decay",
    "d_model",
    "n_layer",
    "mlp_ratio",
    "max_timestep",
    "expansion",
    "expand",
    "d_state",
}


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    rng = np.random.default_rng(0)
    return Episodes.from_arrays(
        observations=rng.normal(size=(40, 3)),
        actions=rng.uniform(-1, 1, (40, 2)),
        rewards=rng.normal(size=40),
        terminations=np.zeros(40, bool),
        truncations=np.arange(1, 41) % 10 == 0,
        action_low=-np.ones(2),
        action_high=np.ones(2),
        dataset_id="mine/test-v0",
    )


def edges(cls: type, item) -> list:
    """The outermost values that a key takes, and every option."""
    if options := item.metadata.get("options"):
        return list(options)
    limits = item.metadata.get("limits", {})
    if kind_of(cls, item.name) is bool:
        return [False, True]
    low = limits.get("at least", 1e-30 if limits.get("above") == 0 else None)
    high = limits.get("at most")
    if "below" in limits:
        high = math.nextafter(limits["below"], 0)
    if item.name in LARGE:
        high = None
    return [edge for edge in (low, high) if edge is not None]


def tiny(name: str, group: str, key: str, value) -> TrainConfig:
    config, _ = MIXERS[name]
    values = {
        part: dict(TINY.get(part, {})) for part in ("backbone", "protocol", "policy", "trainer")
    }
    values[group][key] = value
    if key == "begins_empty" or name == "mamba":
        values["backbone"].setdefault("d_state", 4)
    parts = {part: values[part] for part in ("protocol", "policy", "trainer")}
    hints = get_type_hints(TrainConfig)

    return TrainConfig(
        dataset=DatasetConfig("builtin"),
        backbone=config(**values["backbone"]),
        **{part: hints[part](**given) for part, given in parts.items()},
    )


RUNS = [
    (name, group, item.name, value)
    for group, cls, names in [
        *(("backbone", config, [name]) for name, (config, _) in MIXERS.items()),
        ("policy", PolicyConfig, ["min_gru"]),
        ("trainer", get_type_hints(TrainConfig)["trainer"], ["min_gru"]),
        ("protocol", get_type_hints(TrainConfig)["protocol"], ["min_gru"]),
    ]
    for name in names
    for item in fields(cls)
    for value in edges(cls, item)
] + [("min_gru", "policy", "hidden", value) for value in ([], [2, 0])]


@pytest.mark.parametrize(("name", "group", "key", "value"), RUNS)
def test_what_is_legal_trains_and_acts(name, group, key, value, episodes):
    """At the limits of each key: one update and one step, or one sentence from the outset."""
    try:
        config = tiny(name, group, key, value)
        batches = make_batches(episodes, config.protocol, seed=0, device=torch.device("cpu"))
    except UserError as error:
        assert key in str(error)
        return
    if config.backbone.d_model == 4 and getattr(config.backbone, "scan", "auto") == "triton":
        pytest.skip("Triton's kernels want a GPU")
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        config.policy, config.backbone, observation_dim=3, action_dim=2
    )
    settings = {"lr": config.trainer.learning_rate, "weight_decay": config.trainer.weight_decay}
    optimizer = torch.optim.AdamW(policy.parameters(), **settings)
    loss, _ = policy.loss(**batches.next(), state=None)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    actor = make_actor(policy.eval(), "carried", config.protocol.context_length)
    with torch.inference_mode():
        action, _ = actor.act(
            torch.randn(2, 3), torch.zeros(2), actor.initial_state(2), torch.tensor([True, True])
        )
    assert action.shape == (2, 2) and (key == "learning_rate" or torch.isfinite(action).all())


@pytest.mark.parametrize("name", MIXERS)
def test_a_network_beyond_the_memory_is_refused_before_it_is_built(name):
    config = MIXERS[name][0](d_model=65_536, n_layer=1000)
    given = TrainConfig(dataset=DatasetConfig("builtin"), backbone=config)
    with pytest.raises(UserError, match=r"training the network of [\d,]+ parameters takes at"):
        check_memory(given, torch.device("cpu"))
    check_memory(TrainConfig(DatasetConfig("builtin"), MIXERS[name][0]()), torch.device("cpu"))


def test_auto_takes_bfloat16_where_it_is_measured_to_be_faster(monkeypatch):
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    state = torch.random.get_rng_state()
    assert 0.01 < machine.gain_of_bfloat16() < 100
    assert torch.get_num_threads() == threads  # and the parameters start as without it
    assert torch.equal(torch.random.get_rng_state(), state)
    for instruction, gain, expected in [
        (True, 2.0, "bfloat16"),
        (True, 0.6, "float32"),  # Intel's processors without AMX
        (False, 2.0, "float32"),
    ]:
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda there=instruction: there, raising=False
        )
        monkeypatch.setattr(machine, "gain_of_bfloat16", lambda gain=gain: gain)
        assert resolve_precision("auto", cpu) == expected
        assert resolve_precision("bfloat16", cpu) == "bfloat16"
        assert resolve_precision("auto", torch.device("cuda")) == "float32"


# -- the command line -------------------------------------------------------------------------

REFUSED = {
    "seed=-1": "seed is -1; it must be at least 0 and at most 4,294,967,295",
    "seed=99999999999999999999": "seed is 99999999999999999999; it must be",
    "trainer.learning_rate=-1": "trainer.learning_rate is -1.0; it must be above 0 and at most",
    "trainer.learning_rate=0": "trainer.learning_rate is 0.0; it must be above 0",
    "trainer.learning_rate=nan": "trainer.learning_rate is nan; it must be above 0",
    "trainer.weight_decay=-1": "trainer.weight_decay is -1.0; it must be at least 0",
    "trainer.weight_decay=nan": "trainer.weight_decay is nan",
    "trainer.warmup=-5": "trainer.warmup is -5; it must be at least 0",
    "trainer.gradient_clip=-1": "trainer.gradient_clip is -1.0; it must be at least 0",
    "policy.max_timestep=-1": "policy.max_timestep is -1; it must be at least 1",
    "policy.return_scale=inf": "policy.return_scale is inf; it must be",
    "evaluation.episodes=0": "evaluation.episodes is 0; it must be at least 1",
    "evaluation.episodes=10000000000000": "evaluation.episodes is 10000000000000; it must be",
    "evaluation.episodes_in_training=-3": "evaluation.episodes_in_training is -3",
    "evaluation.every=-1": "evaluation.every is -1; it must be at least 0",
    "evaluation.seed=-1": "evaluation.seed is -1",
    "evaluation.target_return=nan": "evaluation.target_return is nan",
    "evaluation.target_return=inf": "evaluation.target_return is inf",
    "evaluation.target_return=1e300": r"evaluation.target_return is 1e\+300",
    "backbone.d_model=0": "backbone.d_model is 0; it must be at least 1",
    "backbone.d_model=-16": "backbone.d_model is -16",
    "backbone.d_model=1000000": "backbone.d_model is 1000000; .* at most 65,536",
    "backbone.n_layer=0": "backbone.n_layer is 0",
    "backbone.n_layer=-1": "backbone.n_layer is -1",
    "backbone.mlp_ratio=0": "backbone.mlp_ratio is 0",
    "backbone.mlp_ratio=-1": "backbone.mlp_ratio is -1",
    "backbone.dropout=2": "backbone.dropout is 2.0; it must be at least 0 and below 1",
    "backbone.dropout=1": "backbone.dropout is 1.0; it must be at least 0 and below 1",
    "backbone.dropout=nan": "backbone.dropout is nan",
    "backbone.scan=foo": "backbone.scan 'foo' does not exist; there are: auto, reference",
    "backbone.gate_bias=inf": "backbone.gate_bias is inf",
    "backbone.name=foo": "backbone.name is 'foo', but .* settings of 'min_gru'",
    "backbone.name=gru": "backbone.name is 'gru', but .* settings of 'min_gru'",
    "backbone=attention backbone.context_length=1000000000": "context_length is 1000000000",
    "rollout=rolling protocol.context_length=1": "protocol.context_length is 1, but rollout=roll",
    "policy.hidden=positions": r"policy\.hidden is 'positions'; it must be a list of observation",
    "policy.hidden=[1,1]": r"policy\.hidden is \[1, 1\]; .* from 0 and each once, or the word vel",
    "policy.hidden=velocities dataset.environment=Swimmer-v5": "not known for Swimmer-v5; give",
    "conditions.observation_loss=1": r"conditions\.observation_loss is 1.0; it must be .* below 1",
    "conditions.action_delay=2": r"change the trajectory, so recorded .* eval\.py action_delay=2",
    "evaluation.target=published dataset.environment=Ant-v5": "none is known for Ant-v5; choose",
    "evaluation.target=chosen": r"critic\.updates is 0: no critic is trained .* experiment=chosen",
    "experiment=chosen policy.return_to_go=false": r"return_to_go=false the policy sees no target",
    "run_dir=": "run_dir is empty",
    "=1": "'=1' is not an override; write key=value",
    "+foo=1": r"\+foo=1 would add or remove a key",
    "~trainer": "~trainer would add or remove a key",
    "trainer=foo": "trainer=foo cannot be used",
    "trainer=null": "trainer=null cannot be used|trainer has no value",
    "backbone=null": "backbone=null cannot be used: Config group override must be a string",
    "run_dir=[x": r"'run_dir=\[x' is not an override; .* \"key='a,b'\"",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_an_override_is_refused(overrides):
    register()
    with pytest.raises(UserError, match=REFUSED[overrides]) as raised:
        check(overrides.split(), "train")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "target", "way"),
    [
        ("", 450.0, ", held"),
        ("auto", 450.0, ", held"),
        ("held", 450.0, ", held"),
        ("chosen", 450.0, ", chosen"),
        ("best", 450.0, ""),
        ("data", 300.0, ""),
        ("published", 3600.0, ""),
    ],
)
def test_the_rule_of_the_target_return_is_followed(keys, target, way):
    register()
    overrides = [f"evaluation.target={keys}"] if keys else []
    critic = ["critic.updates=9"] if keys == "chosen" else []
    [(_, config)] = check(["dataset=hopper-medium", *critic, *overrides], "train")
    dataset = DatasetInfo(
        "mine/d-v0", "Hopper-v5", {}, None, 9, 99, 100.0, 300.0, 450.0, "0" * 64, cut_short=True
    )
    asked = resolve_evaluation(config, dataset)
    assert (asked.target_returns, asked.way) == ((target,), way)
    if keys in ("", "auto"):
        for other in (False, None):
            assert resolve_evaluation(config, replace(dataset, cut_short=other)).way == ""
        blind = replace(config, policy=PolicyConfig(return_to_go=False))
        assert resolve_evaluation(blind, dataset).way == ""
    [(_, config)] = check(["evaluation.target_return=7", *overrides], "train")
    own = resolve_evaluation(config, dataset)
    assert (own.target_returns, own.way) == ((7.0,), "")
    unknown = replace(dataset, environment_id="Mine-v0")  # no return is published for it
    assert resolve_evaluation(config, unknown).target_returns == (7.0,)

    [(_, config)] = check(["run=any", f"target={keys or 'null'}"], "eval")
    again = resolve(config, dataset, own)
    assert (*again.target_returns, again.way) == ((target, way) if keys else (7.0, ""))
    for given, targets in (
        ("target_fraction=[0.5,1]", (225.0, 450.0)),
        ("target_return=[9]", (9.0,)),
    ):
        [(_, config)] = check(["run=any", given], "eval")
        again = resolve(config, dataset, asked)
        assert (again.target_returns, again.way) == (targets, "")
    with pytest.raises(UserError, match="give only one of target_return, target_fraction and tar"):
        check(["run=any", "target=best", "target_fraction=[1]"], "eval")


@pytest.mark.parametrize("path", ["ü", "a=b", "it's ~/x", "a b", "#1; !"])
def test_any_path_may_be_a_run_folder(path):
    register()
    [(_, config)] = check([quoted(f"run_dir={path}")], "train")
    assert config.run_dir == path


def test_a_key_without_a_default_and_a_list_are_checked_too():
    @dataclass
    class Config:
        kind: str = choice(MISSING, ("a", "b"))
        targets: list[float] | None = number(None, above=0)

        def __post_init__(self) -> None:
            check_fields(self)

    assert Config("a", [1, 2.5]).targets == [1, 2.5]
    for wrong in (("c", None), ("a", []), ("a", [1, math.nan]), ("a", [True]), (None, None)):
        with pytest.raises(UserError):
            Config(*wrong)


# -- as a user starts it ----------------------------------------------------------------------


ONE_LINE = [
    ("train.py", "device=cuda"),
    ("train.py", "trainer.learning_rate=nan"),
    ("train.py", "--flag"),
    ("-m envs.behaviors.collect", "dataset=hopper-medium", "seed=-1"),
]


@pytest.mark.parametrize("command", ONE_LINE)
def test_a_wrong_setting_is_one_line_and_leaves_nothing_behind(command, call, tmp_path):
    if "device=cuda" in command and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    found = call(*command)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    assert not list(tmp_path.iterdir())


def test_the_help_lists_groups_keys_and_flags(call):
    found = call("train.py", "backbone=mamba", "--help")
    assert found.returncode == 0, found.stderr
    for line in (
        "experiment: bc,",
        "trainer.learning_rate=0.001",
        "backbone.d_conv=4",
        "--cfg job",
    ):
        assert line in found.stdout
    small = call("-m envs.behaviors.collect", "--help")
    assert small.returncode == 0 and "steps=200000\n      Least number of steps" in small.stdout


def test_hydra_s_flags_and_an_experiment_of_one_s_own(start, call, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - windowed\n  - _self_\nsteps: 7\n"
    )
    own = ["--config-dir", "mine"]
    found = start("train.py", *own, "experiment=mine", "--cfg", "job")
    assert found.returncode == 0, found.stderr
    values = OmegaConf.create(found.stdout)
    assert values.steps == 7 and values.rollout == "rolling"
    wrong = start("train.py", *own, "experiment=mime")
    assert "(did you mean 'mine'?)" in wrong.stderr
    shell = call("train.py", "-sc", "install=bash")
    assert shell.returncode == 0 and "complete -o nospace" in shell.stdout
