import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.backbones import MIXERS
from agents.checkpoint import (
    RunDescription,
    claim_run_folder,
    load_policy,
    load_training_state,
    save_description,
    save_policy,
    save_training_state,
)
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from common.errors import UserError
from common.files import write_file

CONFIG = MIXERS["min_lstm"][0](d_model=16, n_layer=2, name="min_lstm")


def make_policy(seed: int = 0) -> ReturnConditionedPolicy:
    torch.manual_seed(seed)
    policy = ReturnConditionedPolicy(PolicyConfig(), CONFIG, observation_dim=4, action_dim=2)
    policy.set_statistics(
        observation_mean=torch.arange(4.0),
        observation_std=torch.arange(4.0) + 1,
        action_low=-torch.ones(2),
        action_high=2 * torch.ones(2),
        target_return=123.0,
    )
    return policy.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    policy = make_policy()
    save_description(tmp_path, policy, CONFIG, RunDescription("rolling", 20, {"id": "test"}))
    save_policy(tmp_path, policy, 7)
    return tmp_path


def test_a_checkpoint_gives_back_all_that_acting_needs(folder):
    policy, description, step = load_policy(folder)
    expected = make_policy()
    assert step == 7
    assert description == RunDescription("rolling", 20, {"id": "test"})
    for (name, tensor), (other_name, other) in zip(
        policy.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == other_name and torch.equal(tensor, other)
    arguments = torch.randn(3, 4), torch.zeros(3), policy.initial_state(3), torch.ones(3).bool()
    assert torch.equal(policy.act(*arguments)[0], expected.act(*arguments)[0])
    assert not policy.training


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_checkpoint_is_refused(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=f"holds no checkpoint: {missing} is missing"):
        load_policy(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.99])
def test_truncated_weights_are_refused(folder, keep):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors is truncated or damaged"):
        load_policy(folder)


def test_any_flipped_bit_in_the_weights_is_noticed(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for position in [*range(0, header, 37), *range(header, len(content), 5003)]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            load_policy(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"policy": {}}', '{"policy": {"tokens": 9}, "backbone": {}}']
)
def test_a_damaged_description_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json does not describe a policy"):
        load_policy(folder)


def test_weights_of_another_policy_are_refused(folder):
    content = json.loads((folder / "config.json").read_text())
    content["observation_dim"] = 5
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not fit the policy"):
        load_policy(folder)


def test_a_damaged_training_state_is_refused(tmp_path):
    assert load_training_state(tmp_path) is None
    save_training_state(tmp_path, {"step": 3, "weights": torch.ones(1000)})
    state = load_training_state(tmp_path)
    assert state is not None and state["step"] == 3
    path = tmp_path / "training_state.pt"
    content = path.read_bytes()
    damaged = bytearray(content)
    # A byte of the tensor itself: torch.load alone would hand it over without a word.
    damaged[content.index(torch.ones(1000).numpy().tobytes()) + 1234] ^= 1
    for bad in (bytes(damaged), content[:-10], content[:100], b""):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"training_state\.pt is truncated or damaged"):
            load_training_state(tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from agents.checkpoint import save_training_state
from common.errors import UserError
from common.files import write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path(sys.argv[1])
for save in (
    lambda: save_training_state(folder, {"weights": torch.zeros(1_000_000)}),
    lambda: write_file(folder / "training_state.pt", bytes(1_000_000)),
):
    try:
        save()
    except UserError as error:
        print(error)
"""


def test_a_full_disk_costs_nothing_that_was_saved(tmp_path):
    """The file size limit fails the write half way, as a full disk does."""
    save_training_state(tmp_path, {"step": 3})
    before = (tmp_path / "training_state.pt").read_bytes()
    found = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert "training_state.pt cannot be written" in line
        assert "what was saved there before is intact" in line
    assert (tmp_path / "training_state.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["training_state.pt"]


def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run folder .* cannot be made"):
        claim_run_folder(tmp_path / "file" / "run", "", resume=False, overwrite=False)
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / "missing" / "x", b"1")


def test_a_run_folder_is_never_taken_over_silently(tmp_path):
    folder = tmp_path / "run"
    claim_run_folder(folder, "seed: 0\ntrainer:\n  warmup: 5\n", resume=False, overwrite=False)
    (folder / "model.safetensors").write_text("precious")
    (folder / "notes.txt").write_text("mine")
    same = "seed: 0\ntrainer:\n  warmup: 5\n"
    with pytest.raises(UserError, match=r"already holds a run: resume=true .* overwrite=true"):
        claim_run_folder(folder, same, resume=False, overwrite=False)
    claim_run_folder(folder, same, resume=True, overwrite=False)
    other = "seed: 0\ntrainer:\n  warmup: 6\n"
    with pytest.raises(UserError, match=r"trainer\.warmup is 5 there and 6 here"):
        claim_run_folder(folder, other, resume=True, overwrite=False)
    assert (folder / "model.safetensors").read_text() == "precious"
    claim_run_folder(folder, other, resume=False, overwrite=True)
    # Overwriting discards the run, and only what a run writes.
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "notes.txt"]
