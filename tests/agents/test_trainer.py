import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.backbones import MIXERS
from agents.checkpoint import (
    RunDescription,
    load_policy,
    load_training_state,
    save_description,
    save_training_state,
)
from agents.metrics import Metrics
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from agents.trainer import Trainer, TrainerConfig, stop_requests
from common.errors import UserError

CONFIG = MIXERS["min_gru"][0](d_model=16, n_layer=1, dropout=0.1)


class RandomBatches:
    """Random batches from a generator whose state is the position."""

    continues = True
    own_rows = slice(None)

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.spoil_after = self.kill_after = 10**9
        self.count = 0

    def next(self) -> dict[str, torch.Tensor]:
        self.count += 1
        if self.count > self.kill_after:
            raise Killed
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
    save_description(folder, policy, backbone, RunDescription({}, {}))
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
OTHER = MIXERS["mamba"][0](d_model=16, n_layer=1, dropout=0.1, learnable_initial_state=True)


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


def records(folder: Path) -> list[dict[str, float]]:
    """Returns what metrics.jsonl holds, but for times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        for line in lines
    ]


class Killed(BaseException):
    """Ends a run as SIGKILL does: nothing of the trainer catches it."""


@pytest.mark.parametrize("save_every", [4, 7, 10])
def test_a_killed_run_has_the_records_of_an_unbroken_one(tmp_path, save_every):
    """Killed in each evaluation, after the save of the same update, and in an update between."""
    kills = {10, 20, 30}

    def evaluate(policy, step, killed=False):
        if killed and step in kills:
            kills.remove(step)
            raise Killed
        return {"eval/x": next(policy.parameters()).sum().item()}

    settings = {"log_every": 5, "save_every": save_every}
    assert make_trainer(tmp_path / "unbroken", evaluate=evaluate, **settings).run()
    broken = tmp_path / "broken"
    for updates in (99, 9, 99, 9, 99):
        trainer = make_trainer(broken, evaluate=partial(evaluate, killed=True), **settings)
        trainer.resume()
        trainer.batches.kill_after = updates
        with pytest.raises(Killed):
            trainer.run()
    last = make_trainer(broken, evaluate=evaluate, **settings)
    last.resume()
    assert last.run() and not kills
    expected = records(tmp_path / "unbroken")
    assert records(broken) == expected
    assert [r["step"] for r in expected if "eval/x" in r] == [10, 20, 30]
    files = [(f / "model.safetensors").read_bytes() for f in (broken, tmp_path / "unbroken")]
    assert files[0] == files[1]


def test_what_acts_is_what_the_state_says_also_after_a_kill_between_the_two(tmp_path):
    make_trainer(tmp_path, steps=20).run()
    weights = tmp_path / "model.safetensors"
    expected = weights.read_bytes()
    older = make_trainer(tmp_path / "older", steps=20)
    older.update()
    older.save()
    for before in ((tmp_path / "older" / "model.safetensors").read_bytes(), None):
        weights.unlink()
        if before is not None:
            weights.write_bytes(before)
        again = make_trainer(tmp_path, steps=20)
        again.resume()
        assert again.run()
        assert weights.read_bytes() == expected
        assert load_policy(tmp_path)[2] == 20


@pytest.mark.parametrize(
    "end", ['{"step": 35, "train/loss": 1.0}\n{"step": 4', "garbage\n", "\0\0"]
)
def test_what_is_not_whole_at_the_end_of_the_records_is_cut(tmp_path, end):
    make_trainer(tmp_path, steps=30).run()
    before = records(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(end)
    second = make_trainer(tmp_path, steps=30)
    second.resume()
    second.run()
    assert records(tmp_path) == before
    assert [record["step"] for record in before] == [5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize("line", [b"garbage", b"[1]", b'{"step": "x"}', b"\xff"])
def test_a_damaged_record_is_one_sentence(tmp_path, line):
    make_trainer(tmp_path, steps=30).run()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
    second = make_trainer(tmp_path, steps=30)
    second.resume()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged in line 3; remove the line"):
        second.run()


@pytest.mark.posix
def test_a_full_disk_under_the_records_is_one_sentence(tmp_path):
    metrics = Metrics(tmp_path, resume_step=0)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl .* cannot be written \(No space left"):
        metrics.record(5, {"train/loss": 1.0})
    metrics.close()


FULL_DISK = """
import resource, sys
from pathlib import Path
from agents.metrics import Metrics
from common.errors import UserError
metrics = Metrics(Path(sys.argv[1]), resume_step=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    for step in range(99):
        metrics.record(step, {f"a{i}": 0 for i in range(100)})
except UserError as error:
    print(error, step)
metrics.close()
"""


@pytest.mark.posix
def test_a_full_disk_under_tensorboard_is_one_sentence(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the TensorBoard events beside it cannot be written (File too large)" in found.stdout
    assert found.stdout.count("\n") == 1 and "Traceback" not in found.stderr
    assert (tmp_path / "metrics.jsonl").stat().st_size < 20_000


@pytest.mark.parametrize("key", ["step", "policy", "optimizer", "batches", "carried", "random"])
@pytest.mark.parametrize("value", [None, -1, "x", {}])
def test_a_training_state_of_another_kind_is_one_sentence(tmp_path, key, value):
    trainer = make_trainer(tmp_path)
    trainer.save()
    if key == "carried" and value is None:
        return
    state = load_training_state(tmp_path)
    save_training_state(tmp_path, state | {key: value})
    with pytest.raises(UserError, match=r"training_state\.pt is truncated or damaged"):
        make_trainer(tmp_path).resume()


def test_a_gradient_clip_of_zero_does_not_clip(tmp_path):
    trainers = []
    for clip in (0, 1e9, 1e-3):
        trainers.append(make_trainer(tmp_path, gradient_clip=clip))
        trainers[-1].run()
    assert_equal(*trainers[:2])
    with pytest.raises(AssertionError):
        assert_equal(*trainers[1:])


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.batches.spoil_after = 14
    with pytest.raises(UserError, match=r"not finite at update 15 .*the last checkpoint in"):
        trainer.run()
    policy, _, step = load_policy(tmp_path)
    assert step == 10
    assert all(torch.isfinite(t).all() for t in policy.state_dict().values())
    assert all(torch.isfinite(p).all() for p in trainer.policy.parameters())


def test_a_loss_that_is_not_finite_from_the_start_speaks_of_no_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.batches.spoil_after = 0
    with pytest.raises(UserError, match=r"not finite at update 1 \(loss nan\): lower"):
        trainer.run()


@pytest.mark.posix
def test_a_hang_up_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_requests() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(5)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_ctrl_c_and_signals_to_end_save_and_end_cleanly(tmp_path, name):
    signum = getattr(signal, name)
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
