"""train.py and eval.py as a user starts them: real data, real MuJoCo, real processes."""

import json
import re
import signal
import subprocess

import numpy as np
import pytest
import torch
from programs import ROOT, SMALL, end, wait_for
from rich.console import Console
from safetensors.torch import load_file

from agents import load_actor
from common.errors import UserError
from configs.launch import command
from configs.launch.data import read_data
from configs.schema import register
from envs.data.store import store_episodes
from reports.held_out import read_held_out
from reports.scores import read_scores


def test_train_then_eval(start, call, tmp_path):
    trained = call("train.py", *SMALL, "steps=80", "held_out=0.2", "evaluation.target=best")
    assert trained.returncode == 0, trained.stderr
    (folder,) = tmp_path.glob("runs/hopper-medium-expert/*")
    assert re.fullmatch(r"min_gru-streamed-seed0-[0-9a-f]{8}", folder.name)
    for name in ("config.yaml", "config.json", "model.safetensors", "training_state.pt"):
        assert (folder / name).is_file()
    output = trained.stdout
    for part in ("Hopper-v5", "MuJoCo", "D4RL", "top 10 %", "normalised score", "carried"):
        assert part in output, output
    (score,) = json.loads((folder / "scores.json").read_text())
    assert score["checkpoint_step"] == 80 and len(score["episode_returns"]) == 3
    assert json.loads((folder / "config.json").read_text())["evaluation"] == score["evaluation"]
    assert f"{score['return_mean']:,.1f} ± {score['return_std']:,.1f}" in output
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [r["step"] for r in records if "eval/return_mean" in r] == [40, 80]
    assert all(r["eval/loss"] > 0 for r in records if "eval/return_mean" in r)
    assert not list(tmp_path.glob("outputs")) and not list(tmp_path.glob("*.log"))

    # The run folder is all that eval.py needs, wherever it is; asked for nothing, it does as the
    # run's own evaluation did.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("config.json", "model.safetensors", "config.yaml"):
        (folder / name).rename(moved / name)
    again = start("eval.py", f"run={moved}")
    assert again.returncode == 0, again.stderr
    (second,) = json.loads((moved / "scores.json").read_text())
    assert second == score

    # Anything else stands beside it.
    swept = call(
        "eval.py", f"run={moved}", "episodes=2", "target_return=[100,2000]", "rollout=window"
    )
    assert swept.returncode == 0, swept.stderr
    path = moved / "scores-rollout-window-target_return-100-2000-episodes-2.json"
    rows = [row["evaluation"] for row in json.loads(path.read_text())]
    assert [(row["target_returns"], row["rollout"]) for row in rows] == [
        ([100.0], "window"),
        ([2000.0], "window"),
    ]
    assert json.loads((moved / "scores.json").read_text()) == [score]

    harder = call(
        "eval.py",
        f"run={moved}",
        "target_fraction=[0.5,2]",
        "observation_noise=0.1",
        "action_delay=1",
        "start_noise=0.01",
        "horizon=1200",
    )
    assert harder.returncode == 0, harder.stderr
    assert "Conditions: horizon 1200" in harder.stdout
    (path,) = moved.glob("scores-target_return-*-horizon-1200-start_noise-0.01-*.json")
    first, last = (score.evaluation for score in read_scores(path))
    assert last.target_returns[0] == pytest.approx(4 * first.target_returns[0])
    assert first.conditions.endswith("observation_noise 0.1, action_delay 1")

    other = call("eval.py", f"run={moved}", "environment=Walker2d-v5")
    assert other.returncode == 1
    assert "observation" in other.stderr and "Traceback" not in other.stderr

    assert_damage_is_one_sentence(call, moved)


def test_data_without_an_environment_end_with_their_held_out_error(call, tmp_path):
    # A robot's log: the first action follows the first observation, the second hardly moves.
    generator = np.random.default_rng(0)
    observations = generator.normal(size=(400, 4))
    np.savez(
        tmp_path / "log.npz",
        observations=observations,
        actions=np.stack([np.tanh(observations[:, 0]), np.full(400, 0.25)], axis=1),
        rewards=np.ones(400),
        terminals=np.zeros(400),
        timeouts=np.arange(400) % 40 == 39,
    )
    store = ["file=log.npz", "id=mine/log-v0", "action_low=[-1,0]", "action_high=[1,0.5]"]
    stored = call("-m envs.data.store", *store)
    assert stored.returncode == 0, stored.stderr
    mine = [*SMALL[1:], "dataset=minari", "dataset.id=mine/log-v0", "steps=40", "run_dir=runs/log"]
    published = call("train.py", *mine, "evaluation.target=published")
    assert "none is known for data that name no environment" in published.stderr

    trained = call("train.py", *mine)
    assert trained.returncode == 0, trained.stderr
    assert "1 episodes, of 10" in trained.stdout and "no return, because" in trained.stdout
    found = read_held_out(tmp_path / "runs" / "log")
    assert (found.checkpoint_step, found.episodes, found.steps) == (40, 1, 40)
    assert found.mean_action_error[1] == found.previous_action_error[1] == 0 < found.error[1]
    assert found.previous_action_error[0] > found.mean_action_error[0] > 0.3
    records = [json.loads(line) for line in (tmp_path / "runs/log/metrics.jsonl").open()]
    assert records[-1]["eval/loss"] == pytest.approx(found.loss)
    assert not (tmp_path / "runs/log/scores.json").exists()

    again = call("train.py", *mine, "resume=true")
    assert again.returncode == 0 and "runs/log is finished: held-out loss" in again.stdout
    refused = call("eval.py", "run=runs/log")
    assert refused.returncode == 1 and "give a Gymnasium id as environment=ID" in refused.stderr
    other = call("eval.py", "run=runs/log", "environment=InvertedPendulum-v5")
    assert "2 action dimensions, but InvertedPendulum-v5 has 1" in other.stderr
    compared = call("compare.py", "runs")
    assert "runs/log has no score, because its data name no environment" in compared.stdout


def test_a_published_target_that_is_unknown_is_refused_before_the_data_are_read(store):
    ends = np.arange(6) % 3 == 2
    arrays = {"observations": np.zeros((6, 3)), "actions": np.zeros((6, 1)), "rewards": np.ones(6)}
    arrays |= {"terminations": np.zeros(6), "truncations": ends}
    store_episodes("mine/pendulum-v0", arrays, environment_id="Pendulum-v1")
    (store / "mine/pendulum-v0/data/main_data.hdf5").write_bytes(b"")
    register()
    mine = ["dataset=minari", "dataset.id=mine/pendulum-v0"]
    for target, message in (("published", "none is known for Pendulum-v1"), ("data", "is damaged")):
        [(_, config)] = command.check([*mine, f"evaluation.target={target}"], "train")
        with pytest.raises(UserError, match=message):
            read_data(config, Console())


def test_hidden_and_lost_observations_from_training_to_evaluation(call, tmp_path):
    keys = ["policy.hidden=velocities", "conditions.observation_loss=0.2", "evaluation.every=0"]
    trained = call("train.py", *SMALL[:7], *keys, "steps=20", "run_dir=run", "held_out=0.1")
    assert trained.returncode == 0, trained.stderr
    for line in (
        "Observations that the policy does not see: velocities.",
        "Conditions: observation_loss 0.2.",
    ):
        assert line in trained.stdout
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["policy"]["hidden"] == [5, 6, 7, 8, 9, 10]
    assert described["evaluation"]["observation_loss"] == 0.2

    asked = call("eval.py", "run=run", "observation_loss=0", "episodes=2")
    assert asked.returncode == 0, asked.stderr
    path = tmp_path / "run" / "scores-episodes-2-observation_loss-0.json"
    (score,) = read_scores(path)
    assert score.hidden_observations == "velocities" and score.evaluation.conditions == ""
    other = call("eval.py", "run=run", "environment=Walker2d-v5")
    assert other.returncode == 1 and other.stderr.count("\n") == 1
    assert "not see the observations [5, 6, 7, 8, 9, 10] of Hopper-v5, and these" in other.stderr


def assert_damage_is_one_sentence(call, folder):
    path = folder / "config.json"
    good = path.read_text()
    for keys, value, words in (
        (["dataset"], {"id": "x"}, "environment_id"),
        (["dataset", "return_max"], "x", "return_max is 'x'"),
        (["evaluation", "rollout"], "rolled", "rollout 'rolled' does not exist"),
        (["evaluation", "seed"], -1, "seed is -1"),
        (["evaluation", "environment_id"], "this:Hopper-v5", "give environment=this:Hopper-v5"),
    ):
        content = json.loads(good)
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        path.write_text(json.dumps(content))
        found = call("eval.py", f"run={folder}")
        assert found.returncode == 1 and words in found.stderr, found.stderr
        assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
        assert "Zen of Python" not in found.stdout
    path.write_text(good)


def test_a_killed_run_resumes_to_the_same_bits(start, call, tmp_path):
    # `streamed` carries a state from batch to batch, which must be saved too; lost observations are
    # drawn again from the seed.
    arguments = [*SMALL, "steps=120", "evaluation.every=0", "protocol.name=streamed"]
    arguments += ["conditions.observation_loss=0.1"]
    unbroken = call("train.py", *arguments, "run_dir=unbroken")
    assert unbroken.returncode == 0, unbroken.stderr

    arguments += ["run_dir=killed", "resume=true"]
    state = tmp_path / "killed" / "training_state.pt"
    for _ in range(2):
        before = state.stat().st_mtime_ns if state.exists() else 0
        process = start("train.py", *arguments, wait=False)
        wait_for(process, lambda: state.exists() and state.stat().st_mtime_ns != before)  # noqa: B023
        process.kill()
        process.communicate()
    last = start("train.py", *arguments)
    assert last.returncode == 0, last.stderr
    weights, expected = (
        load_file(tmp_path / f / "model.safetensors") for f in ("killed", "unbroken")
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    scores = [
        json.loads((tmp_path / f / "scores.json").read_text()) for f in ("killed", "unbroken")
    ]
    assert scores[0] == scores[1]


def test_value_help_from_the_command_line_and_resumed_to_the_same_bits(start, call, tmp_path):
    plain = [*SMALL, "steps=60", "evaluation.every=0"]
    helped = [*plain, "experiment=value_help", "critic.updates=60", "critic.width=16"]
    unbroken = call("train.py", *helped, "run_dir=unbroken")
    assert unbroken.returncode == 0, unbroken.stderr

    # Killed before the policy's first save, when only the critic is there, and once after it.
    arguments = [*helped, "run_dir=killed", "resume=true"]
    for file in ("critic.safetensors", "training_state.pt"):
        process = start("train.py", *arguments, wait=False)
        wait_for(process, (tmp_path / "killed" / file).exists)
        process.kill()
        process.communicate()
    made = (tmp_path / "killed" / "critic.safetensors").stat().st_mtime_ns
    last = start("train.py", *arguments)
    assert last.returncode == 0, last.stderr
    assert (tmp_path / "killed" / "critic.safetensors").stat().st_mtime_ns == made
    for file in ("critic.safetensors", "model.safetensors", "scores.json"):
        ours, theirs = ((tmp_path / run / file).read_bytes() for run in ("killed", "unbroken"))
        assert ours == theirs, file

    # The help changes the policy; overwriting discards the critic.
    assert call("train.py", *plain, "run_dir=killed", "overwrite=true").returncode == 0
    assert not (tmp_path / "killed" / "critic.safetensors").exists()
    weights = [load_file(tmp_path / r / "model.safetensors") for r in ("killed", "unbroken")]
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])


def test_where_the_best_episodes_fall_their_return_is_held(call, tmp_path):
    ended = call("train.py", *SMALL, "dataset=hopper-medium", "steps=5", "run_dir=run")
    assert ended.returncode == 0, ended.stderr
    assert "are cut short by a fall, so the policy is asked for" in ended.stdout
    assert ", held" in ended.stdout
    actor = load_actor(tmp_path / "run")
    first, second = (actor.act(np.zeros(11)) for _ in range(2))  # it needs no rewards
    assert not np.array_equal(first, second)
    counted = call("eval.py", "run=run", "target=best")
    assert counted.returncode == 0 and ", held" not in counted.stdout


def test_a_critic_that_only_chooses_leaves_the_policy_as_it_is(call, tmp_path):
    plain = [*SMALL, "steps=60", "evaluation.every=30", "precision=float32"]
    chosen = [*plain, "experiment=chosen", "critic.updates=60", "critic.width=16"]
    for name, keys in ("plain", plain), ("chosen", chosen):
        ended = call("train.py", *keys, f"run_dir={name}")
        assert ended.returncode == 0, ended.stderr
    assert ", chosen" in ended.stdout
    tensors = [load_file(tmp_path / run / "model.safetensors") for run in ("plain", "chosen")]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())

    # It can be scored in every way; a run without a critic cannot be scored so.
    returns = [[score.return_mean for score in read_scores(tmp_path / "chosen" / "scores.json")]]
    for target in ("best", "held"):
        ended = call("eval.py", "run=chosen", f"target={target}")
        assert ended.returncode == 0 and ", chosen" not in ended.stdout
    for path in (tmp_path / "chosen").glob("scores-*.json"):
        returns.append([score.return_mean for score in read_scores(path)])
    assert len(returns) == 3 and returns[1] != returns[2]
    refused = call("eval.py", "run=plain", "target=chosen")
    assert refused.returncode == 1 and "has no critic.safetensors" in refused.stderr
    assert "Traceback" not in refused.stderr


def terminated(process, there):
    """Sends SIGTERM to a process as soon as `there` holds; returns how it ended."""
    wait_for(process, there)
    process.send_signal(signal.SIGTERM)
    return end(process)


@pytest.mark.posix
def test_sigterm_while_the_critic_is_trained_ends_cleanly(start, tmp_path):
    endless = [*SMALL, "critic.updates=10000000", "critic.width=8", "run_dir=run"]
    process = start("train.py", *endless, wait=False)
    ended = terminated(process, (tmp_path / "run" / "config.json").exists)
    assert ended.returncode in (0, 130), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "resume=true" in ended.stdout + ended.stderr
    assert not (tmp_path / "run" / "critic.safetensors").exists()


@pytest.mark.posix
def test_sigterm_saves_and_ends_cleanly(start, tmp_path):
    endless = [*SMALL, "steps=100000", "evaluation.every=0", "run_dir=run"]
    process = start("train.py", *endless, wait=False)
    ended = terminated(process, (tmp_path / "run" / "model.safetensors").exists)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"Saved at update \d+ of 100000; resume=true resumes", ended.stdout)


@pytest.mark.posix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_before_the_loop_is_one_sentence(start, tmp_path, name):
    # A million steps of data take minutes to make. MUJOCO_GL changes what MuJoCo imports when.
    new = {"MINARI_DATASETS_PATH": str(tmp_path / "new"), "MUJOCO_GL": "osmesa"}
    process = start("train.py", *SMALL, "dataset.steps=1000000", wait=False, variables=new)
    wait_for(process, lambda: list((tmp_path / "new").rglob(".making-*/")))
    process.send_signal(getattr(signal, name))
    ended = end(process)
    assert ended.returncode == 130, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("interrupted; what was saved is kept"), ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.posix
def test_a_closed_pipe_an_ascii_terminal_and_brackets_in_a_name_do_not_end_a_run(start, tmp_path):
    name = "run[red] [/x]"
    arguments = [*SMALL, "steps=20", "evaluation.every=10", f"run_dir='{name}'"]
    process = start(
        "train.py", *arguments, wait=False, variables={"PYTHONIOENCODING": "ascii"},
        encoding="ascii", stderr=subprocess.STDOUT,
    )  # fmt: skip
    # Until it says where it trains: the bar of the data stands before it.
    assert any(name in line for line in process.stdout)
    process.stdout.close()  # as head -1 does
    assert process.wait() == 0
    assert (tmp_path / name / "scores.json").is_file()


def test_a_folder_of_the_users_own_is_left_alone(call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    found = call("train.py", *SMALL, "run_dir=mine", "overwrite=true")
    assert found.returncode == 1
    assert re.fullmatch(r"error: mine/config\.json is in the way: .*\n", found.stderr)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]


WRONG = {
    "stepz=3": r"key 'stepz' does not exist \(did you mean 'steps'\?\); there are: .*backbone",
    "trainer.learning_rat=3": r"key 'learning_rat' does not exist in trainer .*learning_rate",
    "backbone.gate_biass=3": r"key 'gate_biass' does not exist in backbone .*gate_bias",
    "steps=many": r"steps=many cannot be used: .*could not be converted to Integer",
    "steps=0": r"steps is 0; it must be at least 1",
    "backbone=min_grue": r"backbone 'min_grue' does not exist .*there are: .*min_gru, min_lstm",
    "dataset=hoper-medium": r"dataset 'hoper-medium' does not exist .*'hopper-medium'.*walker2d",
    "experiment=stream": r"experiment 'stream' does not exist .*streamed, value_help, whole",
    "dataset.id=builtin/hopper/simple-v1": r"there is no built-in data set",
    "dataset.source=hdf6": r"dataset.source 'hdf6' does not exist; there are: builtin",
    "dataset=minari": r"dataset\.id",
    "rollout=rolled": r"rollout 'rolled' does not exist; there are: carried, rolling, window",
    "precision=float16": r"precision 'float16' does not exist .*there are: auto, float32, bfloat16",
    "protocol.name=packed": r"protocol\.name 'packed' does not exist",
    "device=tpu": r"device 'tpu' does not exist; there are: auto, cpu, cuda",
    "trainer.schedule=linear": r"trainer\.schedule 'linear' does not exist",
    "backbone.convolution=-1": r"backbone\.convolution is -1; it must be",
    "policy.tokens=2": r"policy\.tokens is 2; it must be 1 or 3",
    "evaluation.target=top": r"evaluation\.target .top. does not exist; there are: auto, best, he",
    "steps": r"'steps' is not an override; write key=value",
    "critic.q_weight=5": r"critic\.q_weight is 5\.0, but critic\.updates is 0: no critic",
    "critic.expectile=1": r"critic\.expectile is 1\.0; it must be",
}


# What only shows once the program runs, and one of the others from beginning to end.
STARTED = {
    "stepz=3",
    "dataset.id=builtin/hopper/simple-v1",
    "dataset.source=hdf6",
    "dataset=minari",
}


@pytest.mark.parametrize("override", sorted(STARTED))
def test_a_wrong_override_is_one_sentence_and_nothing_else(call, tmp_path, override):
    found = call("train.py", override)
    assert found.returncode == 1
    assert re.search(WRONG[override], found.stderr), found.stderr
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1, found.stderr
    assert not (tmp_path / "runs").exists() or not list(tmp_path.glob("runs/*/*/model*"))


@pytest.mark.parametrize("override", sorted(WRONG.keys() - STARTED))
def test_a_wrong_override_is_refused(override):
    register()
    with pytest.raises(UserError, match=WRONG[override]):
        command.check([override], "train")


def test_a_critic_and_lost_observations_are_one_sentence():
    register()
    with pytest.raises(UserError, match=r"observation_loss is 0\.1, but the critic judges"):
        command.check(["critic.updates=5", "conditions.observation_loss=0.1"], "train")


def test_several_episodes_want_a_video():
    register()
    with pytest.raises(UserError, match=r"give video=PATH\.mp4 as well"):
        command.check(["run=x", "video_episodes=9"], "eval")


def test_an_experiment_and_a_backbone_that_do_not_fit_are_one_sentence():
    register()
    with pytest.raises(UserError, match=r"cannot be used: Key 'n_head'"):
        command.check(["experiment=decision_transformer", "backbone=gru"], "train")


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("protocol.context_length is 20 steps", "policy.max_timestep=19"),
        ("backbone.context_length is 21 steps", "backbone.context_length=61"),
    ],
)
def test_a_context_longer_than_the_table_of_timesteps_is_one_sentence(key, override):
    register()
    chosen = ["experiment=decision_transformer", "policy.max_timestep=20"]
    command.check(chosen, "train")
    with pytest.raises(UserError, match=rf"{key}, but .*max_timestep = (19|20) rows"):
        command.check([*chosen, override], "train")


@pytest.mark.parametrize("run", ["nowhere", "."])
def test_eval_without_a_checkpoint_is_one_sentence(call, run):
    found = call("eval.py", f"run={run}")
    assert found.returncode == 1
    assert re.match(r"error: .*holds no checkpoint: config.json is missing", found.stderr)


@pytest.mark.parametrize("script", ["train.py", "eval.py", "compare.py"])
def test_ctrl_c_while_a_script_is_imported_is_one_line(script, start, tmp_path):
    # A module that it imports stands in for the moment at which the user interrupts.
    (tmp_path / "rich.py").write_text("raise KeyboardInterrupt")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); "
    code += f"sys.path.insert(1, {str(ROOT)!r}); "
    code += f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    found = start("-c", code)
    assert found.returncode != 0
    assert found.stderr == "interrupted.\n"
