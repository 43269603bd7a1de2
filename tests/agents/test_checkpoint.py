import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.backbones import MIXERS
from agents.checkpoint import (
    FILES,
    LOCK,
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
    save_description(
        tmp_path, policy, CONFIG, RunDescription({"id": "test"}, {"rollout": "rolling"})
    )
    save_policy(tmp_path, policy, 7)
    return tmp_path


def test_a_checkpoint_gives_back_all_that_acting_needs(folder):
    policy, description, step = load_policy(folder)
    expected = make_policy()
    assert step == 7
    assert description == RunDescription({"id": "test"}, {"rollout": "rolling"})
    for (name, tensor), (other_name, other) in zip(
        policy.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert name == other_name and torch.equal(tensor, other)
    arguments = torch.randn(3, 4), torch.zeros(3), policy.initial_state(3), torch.ones(3).bool()
    assert torch.equal(policy.act(*arguments)[0], expected.act(*arguments)[0])
    assert not policy.training


def test_what_is_hidden_is_part_of_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        PolicyConfig(hidden=[1, 3]), CONFIG, observation_dim=4, action_dim=2
    ).eval()
    save_description(tmp_path, policy, CONFIG, RunDescription({}, {}))
    save_policy(tmp_path, policy, 7)
    loaded, _, _ = load_policy(tmp_path)
    assert loaded.config.hidden == [1, 3]
    observation = torch.tensor([[0.3, torch.nan, -0.7, torch.inf]])
    arguments = observation, torch.zeros(1), policy.initial_state(1), torch.ones(1).bool()
    assert torch.equal(loaded.act(*arguments)[0], policy.act(*arguments)[0])
    # One that does not fit, and one of a run of before.
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["policy"]["hidden"] = [4]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not fit the policy"):
        load_policy(tmp_path)
    del content["policy"]["hidden"]
    path.write_text(json.dumps(content))
    assert not load_policy(tmp_path)[0].hidden.any()


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


@pytest.mark.posix
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


SAME = "seed: 0\ntrainer:\n  warmup: 5\n"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def test_a_run_folder_is_never_taken_over_silently(tmp_path):
    folder = tmp_path / "run"
    claim_run_folder(folder, SAME, resume=False, overwrite=False)
    (folder / "model.safetensors").write_text("precious")
    # Of the user's own, and of eval.py; only the last is of the run.
    (folder / "notes.tmp").write_text("mine")
    (folder / "scores-2024.json").write_text('[{"score": 3}]')
    (folder / "scores-all.json").write_text("my favourites")
    (folder / "scores-seed-1.json").write_text('[{"checkpoint_step": 3}]')
    with pytest.raises(UserError, match=r"already holds a run: resume=true .* overwrite=true"):
        claim_run_folder(folder, SAME, resume=False, overwrite=False)
    before = contents(folder)
    claim_run_folder(folder, SAME, resume=True, overwrite=False)
    other = SAME.replace("5", "6")
    with pytest.raises(UserError, match=r"trainer\.warmup is 5 there and 6 here"):
        claim_run_folder(folder, other, resume=True, overwrite=False)
    assert contents(folder) == before
    claim_run_folder(folder, other, resume=False, overwrite=True)
    # Overwriting discards the run, and only what a run writes.
    assert contents(folder).keys() == {
        *("config.yaml", "notes.tmp", "scores-2024.json", "scores-all.json")
    }


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_is_no_run_loses_nothing(tmp_path, name, overwrite):
    for file in (name, "notes.tmp", "scores-2024.json", "events.out.tfevents.1"):
        (tmp_path / file).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is in the way: the folder is no run"):
        claim_run_folder(tmp_path, SAME, resume=True, overwrite=overwrite)
    (tmp_path / name).unlink()
    claim_run_folder(tmp_path, SAME, resume=True, overwrite=overwrite)
    mine = {"notes.tmp": b"mine", "scores-2024.json": b"mine"}
    assert mine.items() <= contents(tmp_path).items()
    assert contents(tmp_path).keys() == {*mine, "events.out.tfevents.1", "config.yaml"}


def test_what_a_killed_save_left_behind_goes_when_the_run_is_resumed(tmp_path):
    claim_run_folder(tmp_path, SAME, resume=False, overwrite=False)
    (tmp_path / ".training_state.1a2b3c4d.unfinished.pt").write_text("half")
    (tmp_path / ".training_state.mine.unfinished.pt").write_text("mine")
    claim_run_folder(tmp_path, SAME, resume=True, overwrite=False)
    assert contents(tmp_path).keys() == {"config.yaml", ".training_state.mine.unfinished.pt"}


HOLDS = """
import sys
from pathlib import Path
from agents.checkpoint import claim_run_folder
claim_run_folder(Path(sys.argv[1]), sys.argv[2], resume=True, overwrite=False)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_belongs_to_one_process_and_to_none_that_was_killed(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "run"), SAME]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"another process is training in .*run; end it"):
            claim_run_folder(tmp_path / "run", SAME, resume=True, overwrite=False)
        process.kill()
        process.wait()
    claim_run_folder(tmp_path / "run", SAME, resume=True, overwrite=False)
    second = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "another process is training in" in second.stderr


@pytest.mark.parametrize("content", [b"- 1\n", b"a: [", b"\xff\xfe", b"text", b"", b"a: ${b}"])
def test_a_damaged_configuration_is_one_sentence(tmp_path, content):
    claim_run_folder(tmp_path, SAME, resume=False, overwrite=False)
    path = tmp_path / "config.yaml"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + content)
    with pytest.raises(UserError, match=r"config\.yaml is damaged|another configuration"):
        claim_run_folder(tmp_path, SAME, resume=True, overwrite=False)


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot be made or read \(File name too long\)"):
        claim_run_folder(tmp_path / ("x" * 256), SAME, resume=False, overwrite=False)


def test_equal_weights_give_equal_files(tmp_path):
    files = set()
    for _ in range(20):
        save_policy(tmp_path, make_policy(), 7)
        files.add((tmp_path / "model.safetensors").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("key", ["n_layer", "d_model", "mlp_ratio"])
def test_a_description_is_held_against_the_weights_before_anything_is_allocated(folder, key):
    content = json.loads((folder / "config.json").read_text())
    content["backbone"][key] = 10**9
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not fit the policy|does not describe a policy"):
        load_policy(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    policy = make_policy()
    name, parameter = next(iter(policy.named_parameters()))
    parameter.data.view(-1)[0] = float("nan")
    save_policy(folder, policy, 7)
    with pytest.raises(UserError, match=f"not finite, in {name}"):
        load_policy(folder)


def test_a_training_state_that_would_run_code_is_refused(tmp_path):
    torch.save({"step": Path("x")}, tmp_path / "training_state.pt")
    with pytest.raises(UserError, match=r"training_state\.pt is truncated or damaged"):
        load_training_state(tmp_path)
