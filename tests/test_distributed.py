"""train.py under torchrun: two real processes, gloo between them."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from programs import Ended, end, wait_for
from safetensors.torch import load_file

SMALL = [
    "dataset.steps=1500",
    "backbone.d_model=16",
    "backbone.n_layer=1",
    "protocol.batch_steps=720",
    "protocol.context_length=16",  # 45 rows: shares of 22 and 23
    "trainer.log_every=10",
    "evaluation.episodes=1",
    "evaluation.every=0",
    "steps=30",
]
# How each protocol shares out its rows: envs/data/test_batches.py.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("windowed", "whole_episodes")]


def torchrun(processes: int) -> str:
    # Standalone: on a port of its own.
    return f"-m torch.distributed.run --standalone --nproc-per-node {processes} train.py"


def finish(ended: Ended, status: int = 0) -> str:
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def differences(one: Path, other: Path) -> list[float]:
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    return [float((left[name] - right[name]).abs().max()) for name in left]


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


@pytest.mark.parametrize("protocol", ["streamed", *SLOW])
def test_two_processes_train_as_one_on_the_whole_batch(protocol, start, call, tmp_path):
    arguments = [*SMALL, f"protocol.name={protocol}", "backbone.dropout=0", "precision=float32"]
    arguments += ["evaluation.every=15", "evaluation.episodes_in_training=1"]
    output = finish(start(torchrun(2), *arguments, "run_dir=two"))
    finish(call("train.py", *arguments, "run_dir=one"))
    # The first process alone speaks.
    for once in ("on 2 x cpu: updates 0 to 30", "update 15: return", "Score it again"):
        assert output.count(once) == 1, output
    one, two = tmp_path / "one", tmp_path / "two"
    assert max(differences(one, two)) < 1e-6
    ours = [r["train/loss"] for r in records(two) if "train/loss" in r]
    theirs = [r["train/loss"] for r in records(one) if "train/loss" in r]
    assert ours == pytest.approx(theirs, rel=1e-5) and len(ours) == 3
    kept = [torch.load(f / "training_state.pt", weights_only=True) for f in (one, two)]
    assert kept[0]["policy"].keys() == kept[1]["policy"].keys()
    assert len(list(two.glob("events.out.tfevents.*"))) == 1
    assert kept[1]["step"] == 30


def interrupt(process: subprocess.Popen, folder: Path) -> str:
    wait_for(process, (folder / "training_state.pt").exists)
    process.send_signal(signal.SIGTERM)
    return finish(end(process), status=1)  # torchrun's own, whatever its processes say


@pytest.mark.slow
def test_an_interrupted_run_goes_on_alone(start, call, tmp_path):
    arguments = [*SMALL, "protocol.name=streamed", "backbone.dropout=0", "steps=300"]
    arguments += ["precision=float32"]
    arguments += ["trainer.save_every=20", "resume=true"]
    output = interrupt(
        start(torchrun(2), *arguments, "run_dir=broken", wait=False), tmp_path / "broken"
    )
    saved = re.search(r"Saved at update (\d+) of 300; resume=true resumes", output)
    assert saved and 20 <= int(saved[1]) < 300, output
    output = finish(call("train.py", *arguments, "run_dir=broken"))
    assert f"on cpu: updates {saved[1]} to 300" in output
    finish(call("train.py", *arguments, "run_dir=alone"))
    assert max(differences(tmp_path / "broken", tmp_path / "alone")) < 1e-5


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(start, tmp_path):
    # With dropout, and with three: two could add up in any order.
    arguments = [*SMALL, "protocol.name=streamed", "steps=150", "trainer.save_every=20"]
    finish(start(torchrun(3), *arguments, "run_dir=unbroken"))
    arguments += ["resume=true", "run_dir=broken"]
    interrupt(start(torchrun(3), *arguments, wait=False), tmp_path / "broken")
    finish(start(torchrun(3), *arguments))
    assert max(differences(tmp_path / "broken", tmp_path / "unbroken")) == 0


ERRORS = {
    "stepz=3": r"error: key 'stepz' does not exist",
    "protocol.batch_steps=16": r"error: protocol\.batch_steps is 16, too few for 2 processes",
    "dataset.id=builtin/hopper/simple-v1": "error: there is no built-in data set",
    "trainer.learning_rate=1e30": "error: the loss or its gradient is not finite at update",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-m seed=0,1", "error: torchrun makes one run with several processes"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ERRORS.items()),
    ],
)
def test_an_error_is_said_once_and_ends_all_processes(start, arguments, message):
    output = finish(start(torchrun(2), *SMALL, *arguments.split()), status=1)
    assert len(re.findall("error: ", output)) == len(re.findall(message, output)) == 1, output
