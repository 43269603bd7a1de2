import errno
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.backbones import MIXERS
from agents.checkpoint import (
    RunDescription,
    load_policy,
    save_description,
)
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from agents.trainer import (
    Trainer,
    TrainerConfig,
)
from common.errors import UserError

CONFIG = MIXERS["min_gru"][0](d_model=16, n_layer=1)


class RandomBatches:
    """Random batches from a generator whose state is the position."""

    continues = True
    own_rows = slice(None)

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.spoil_after = 10**9
        self.count = 0

    def next(self) -> dict[str, torch.Tensor]:
        self.count += 1
        observations = torch.randn(4, 6, 5, generator=self.generator)
        actions = torch.tanh(observations[..., :2] + observations[..., 2:4])
        if self.count > self.spoil_after:
            observations = observations * float("nan")
        return {
            "observations": observations,
            "actions": actions,
            "returns_to_go": torch.randn(4, 6, generator=self.generator),
            "timesteps": torch.arange(6).expand(4, 6),
            "resets": torch.rand(4, 6, generator=self.generator) < 0.1,
            "mask": torch.ones(4, 6, dtype=torch.bool),
        }

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.generator.set_state(state["generator"])


def make_trainer(
    folder: Path, steps: int = 30, evaluate=None, precision="float32", backbone=CONFIG, **config
) -> Trainer:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(PolicyConfig(), backbone, observation_dim=5, action_dim=2)
    save_description(folder, policy, backbone, RunDescription("carried", 6, {}))
    settings = TrainerConfig(**{"log_every": 5, "save_every": 10, "warmup": 3, **config})
    return Trainer(
        policy,
        RandomBatches(),
        settings,
        steps=steps,
        folder=folder,
        precision=precision,
        evaluate=evaluate,
        evaluate_every=10 if evaluate else 0,
    )


def parameters(trainer: Trainer) -> list[torch.Tensor]:
    trained = list(trainer.policy.state_dict().values())
    return trained + list(trainer.acting_policy.state_dict().values())


def assert_equal(left: Trainer, right: Trainer) -> None:
    for a, b in zip(parameters(left), parameters(right), strict=True):
        assert torch.equal(a, b)


# Mamba and a learned start: two groups of parameters, carried states with a gradient.
OTHER = MIXERS["mamba"][0](d_model=16, n_layer=1, learnable_initial_state=True)


@pytest.mark.parametrize(
    ("ema_decay", "backbone"), [(0.0, CONFIG), (0.9, CONFIG), (0.9, OTHER)], ids=str
)
@pytest.mark.parametrize("stop_at", [1, 10, 17])
def test_a_resumed_run_ends_like_an_unbroken_one_to_the_bit(tmp_path, ema_decay, backbone, stop_at):
    settings = {"ema_decay": ema_decay, "backbone": backbone}
    unbroken = make_trainer(tmp_path / "unbroken", **settings)
    assert unbroken.run()
    first = make_trainer(tmp_path / "broken", **settings)
    while first.step < stop_at:
        first.update()
    first.save()
    first.update()  # after the save, and so lost
    torch.manual_seed(99)
    second = make_trainer(tmp_path / "broken", **settings)
    torch.rand(17)
    second.resume()
    assert second.step == stop_at
    assert second.run()
    assert_equal(unbroken, second)


def test_two_runs_with_one_seed_are_equal_to_the_bit(tmp_path):
    runs = [make_trainer(tmp_path / name) for name in "ab"]
    for run in runs:
        torch.manual_seed(5)
        assert run.run()
    assert_equal(*runs)


def test_evaluation_does_not_disturb_training(tmp_path):
    plain = make_trainer(tmp_path / "plain")
    plain.run()
    seen = []

    def evaluate(policy, step):
        assert not policy.training
        seen.append(step)
        return {"eval/return_mean": float(step)}

    evaluated = make_trainer(tmp_path / "evaluated", evaluate=evaluate)
    evaluated.run()
    assert seen == [10, 20, 30]
    assert_equal(plain, evaluated)


def test_the_loss_falls_and_is_logged_in_both_places(tmp_path):
    trainer = make_trainer(
        tmp_path, steps=200, learning_rate=1e-2, evaluate=lambda policy, step: {"eval/x": 1.0}
    )
    trainer.run()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
    assert list(losses) == list(range(5, 201, 5))
    assert losses[200] < 0.5 * losses[5]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"train/loss", "eval/x", "time/steps_per_second"} <= set(events.Tags()["scalars"])
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    assert logged == pytest.approx(losses, rel=1e-6)


def test_records_after_the_last_save_are_not_kept_twice(tmp_path):
    first = make_trainer(tmp_path, steps=30)
    first.run()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 35, "train/loss": 1.0}\n{"step": 4')
    second = make_trainer(tmp_path, steps=30)
    second.resume()
    second.run()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [5, 10, 15, 20, 25, 30]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.batches.spoil_after = 14
    with pytest.raises(UserError, match="not finite at update 15"):
        trainer.run()
    policy, _, step = load_policy(tmp_path)
    assert step == 10
    assert all(torch.isfinite(t).all() for t in policy.state_dict().values())
    assert all(torch.isfinite(p).all() for p in trainer.policy.parameters())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_end_cleanly(tmp_path, signum):
    before = signal.getsignal(signum)
    trainer = make_trainer(tmp_path, steps=100_000, save_every=100_000)

    def interrupt():
        while trainer.step < 20:
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=interrupt)
    thread.start()
    finished = trainer.run()
    thread.join()
    assert not finished
    _, _, step = load_policy(tmp_path)
    assert step == trainer.step >= 20
    again = make_trainer(tmp_path, steps=100_000)
    again.resume()
    assert again.step == step
    assert_equal(trainer, again)
    assert signal.getsignal(signum) is before


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_save_that_fails_keeps_the_one_before(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    trainer.update()
    trainer.save()
    trainer.update()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"training_state\.pt cannot be written \(No space"):
            trainer.save()
    again = make_trainer(tmp_path)
    again.resume()
    assert again.step == 1


def test_the_acting_policy_is_the_average_of_the_weights(tmp_path):
    trainer = make_trainer(tmp_path, ema_decay=0.9)
    name, parameter = next(iter(trainer.policy.named_parameters()))
    expected = None
    for _ in range(5):
        trainer.update()
        now = parameter.detach().clone()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    torch.testing.assert_close(dict(trainer.acting_policy.named_parameters())[name], expected)
    trainer.save()
    saved, _, _ = load_policy(tmp_path)
    torch.testing.assert_close(dict(saved.named_parameters())[name], expected)


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        ("min_gru", set()),
        ("mamba", {"A_log", "D", "dt_proj.bias"}),
        ("s4d", {"log_dt", "log_A_real", "A_imag"}),
    ],
)
def test_weight_decay_leaves_a_mixers_time_constants_alone(tmp_path, name, exempt):
    backbone = MIXERS[name][0](d_model=16, n_layer=2)
    trainer = make_trainer(tmp_path, backbone=backbone, weight_decay=0.1, warmup=0)
    before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    for parameter in trainer.policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer.optimizer.step()
    kept = {n for n, p in trainer.policy.named_parameters() if torch.equal(p, before[n])}
    kept -= {n for n in before if not before[n].any()}  # zeros stay zero
    assert kept == {f"backbone.blocks.{i}.mixer.{part}" for i in range(2) for part in exempt}


def test_bfloat16_trains(tmp_path):
    trainer = make_trainer(tmp_path, steps=200, learning_rate=1e-2, precision="bfloat16")
    losses = [trainer.update()[0].item() for _ in range(200)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert all(p.dtype == torch.float32 for p in trainer.policy.parameters())


def test_the_schedule():
    cosine = TrainerConfig(warmup=10, schedule="cosine")
    assert cosine.rate_factor(0, 100) == pytest.approx(0.1, rel=0.01)
    assert cosine.rate_factor(50, 100) == pytest.approx(0.5)
    assert cosine.rate_factor(99, 100) < 0.001
    constant = TrainerConfig(warmup=10, schedule="constant")
    assert [constant.rate_factor(s, 100) for s in (4, 9, 99)] == pytest.approx([0.5, 1, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear"}, r"trainer\.schedule 'linear' does not exist; there are: cosine"),
        ({"ema_decay": 1.0}, r"trainer\.ema_decay is 1\.0"),
        ({"save_every": 0}, r"trainer\.save_every is 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TrainerConfig(**settings)
