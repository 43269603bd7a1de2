"""Sweeps as a user starts them: real launchers, real processes, really killed."""

import importlib.util
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from programs import SMALL, Ended, end, wait_for

import train
from common.errors import UserError
from configs.launch import command
from configs.launch.overrides import FOLDER, composed, to_dataclass
from configs.launch.sweep import run_sweep
from configs.schema import register

PROGRAM = command.Program(train.main, train.run_folder, train.prepare, train.result)
QUICK = [*SMALL, "evaluation.every=0", "steps=20"]


def outcome(found: Ended) -> tuple[int, str, str]:
    assert "Traceback" not in found.stderr, found.stderr
    return found.returncode, found.stdout, found.stderr


def scores(folder: Path) -> dict[str, Path]:
    return {path.parent.name.split("-")[2]: path for path in folder.rglob("scores.json")}


@pytest.mark.posix
def test_a_killed_sweep_makes_only_what_is_missing(start, call, tmp_path, monkeypatch):
    sweep = [*SMALL, "evaluation.every=0", "steps=300", "seed=range(3)"]
    killed = start("train.py", "-m", *sweep, wait=False)
    second = "runs/hopper-medium-expert/min_gru-streamed-seed1*/training_state.pt"
    wait_for(killed, lambda: list(tmp_path.glob(second)))
    killed.kill()
    killed.communicate()
    before = scores(tmp_path)
    assert list(before) == ["seed0"]
    content, time_written = before["seed0"].read_text(), before["seed0"].stat().st_mtime_ns

    # Without resume, nothing is started.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"seed0\S+ already holds a run: resume=true resumes"):
        run_sweep("train", PROGRAM, runs_of(*sweep), sweep)

    status, output, errors = outcome(call("train.py", "-m", *sweep, "resume=true"))
    assert status == 0, errors
    assert re.search(r"seed0\S* is finished: score \S+ ± \S+, 3 episodes", output), output
    assert "3 runs, 1 of them finished before" in output
    starts = [int(found) for found in re.findall(r"updates (\d+) to 300", output)]
    assert len(starts) == 2 and starts[0] > 0 and starts[1] == 0
    assert "All 3 runs are finished" in output
    after = scores(tmp_path)
    assert sorted(after) == ["seed0", "seed1", "seed2"]
    assert after["seed0"].stat().st_mtime_ns == time_written
    assert after["seed0"].read_text() == content
    assert not (tmp_path / "multirun.yaml").exists()

    # One finished run alone: shown, not scored again.
    status, output, errors = outcome(call("train.py", *sweep[:-1], "seed=0", "resume=true"))
    assert status == 0 and "is finished: score" in output, errors
    assert "top 10 %" in output and "updates" not in output
    assert after["seed0"].stat().st_mtime_ns == time_written


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_run_that_fails_ends_no_other_one(start, call, tmp_path, launcher):
    (tmp_path / "elsewhere").mkdir()
    sweep = [
        *QUICK,
        "dataset.id=builtin/hopper/medium-v1,builtin/hopper/none-v1,builtin/walker2d/medium-v1",
        "run_dir='elsewhere/${dataset.id}'",
    ]
    if launcher == "basic":
        found = call("train.py", "-m", *sweep)
    else:
        found = start("train.py", "-m", *sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    status, output, errors = outcome(found)
    assert status == 1
    made = {path.parent.parent.name for path in (tmp_path / "elsewhere").rglob("scores.json")}
    assert made == {"hopper", "walker2d"}
    assert "1 of 3 runs are not finished:" in errors, errors
    summary = errors[errors.index("1 of 3 runs") :]
    assert re.search(r"none-v1.*: there is no built-in data set", summary)
    # Runs side by side say only what came of them.
    assert output.count("updates 0 to") == (2 if launcher == "basic" else 0)
    assert output.count("is finished: score") == (0 if launcher == "basic" else 2)


@pytest.mark.posix
def test_ctrl_c_ends_the_sweep_and_not_only_one_run(start, call, tmp_path):
    endless = [*SMALL, "evaluation.every=0", "steps=100000"]
    process = start("train.py", "-m", *endless, "seed=0,1", wait=False)
    wait_for(process, lambda: list(tmp_path.rglob("training_state.pt")))
    # Meanwhile nobody else writes into the run's folder.
    status, _, errors = outcome(call("train.py", *endless, "seed=0", "resume=true"))
    assert status == 1 and re.search(r"another process is training in \S+; end it, or", errors)
    process.send_signal(signal.SIGINT)
    status, _, errors = outcome(end(process))
    assert status == 1 and "2 of 2 runs are not finished" in errors
    assert re.search(r"seed=0: Saved at update \d+ of 100000; resume=true resumes", errors)
    assert re.search(r"seed=1: not started", errors)
    assert len(list(tmp_path.rglob("config.yaml"))) == 1


@pytest.mark.posix
@pytest.mark.slow
def test_ctrl_c_ends_the_processes_of_joblib(start, tmp_path):
    sweep = [*SMALL, "evaluation.every=0", "steps=100000", "seed=0,1,2"]
    sweep += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    process = start("train.py", "-m", *sweep, wait=False, start_new_session=True)
    wait_for(process, lambda: len(list(tmp_path.rglob("training_state.pt"))) == 2)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    status, _, errors = outcome(end(process))
    assert status == 1 and "3 of 3 runs are not finished" in errors, errors
    with pytest.raises(ProcessLookupError):
        wait_until_gone(process.pid)
    assert len(list(tmp_path.rglob("config.yaml"))) == 2


def wait_until_gone(group: int) -> None:
    for _ in range(1000):
        os.killpg(group, 0)
        time.sleep(0.01)


@pytest.mark.slow
def test_submitit_as_on_slurm_but_here(start, tmp_path):
    status, output, errors = outcome(
        start("train.py", "-m", *QUICK, "seed=0,1", "hydra/launcher=submitit_local")
    )
    assert status == 0, errors
    assert sorted(scores(tmp_path / "runs")) == ["seed0", "seed1"]
    assert "All 2 runs are finished" in output


@pytest.mark.slow
def test_ray_on_a_cluster_of_this_machine(start, tmp_path):
    pytest.importorskip("ray")
    sweep = [*QUICK, "dataset.id=builtin/hopper/medium-v1,builtin/hopper/none-v1", "seed=0,1"]
    status, _, errors = outcome(start("train.py", "-m", *sweep, "hydra/launcher=ray"))
    assert status == 1 and "2 of 4 runs are not finished" in errors
    assert "there is no built-in data set" in errors
    assert len(list((tmp_path / "runs").rglob("scores.json"))) == 2


def runs_of(*arguments: str):
    register()
    return command.check(list(arguments), "train")


def overrides_of(*arguments: str) -> list[list[str]]:
    return [run for run, _ in runs_of(*arguments)]


def test_hydra_s_grammar():
    runs = overrides_of("dataset=glob(*-medium)", "backbone=min_gru,min_lstm", "seed=range(2)")
    assert len(runs) == 12
    assert runs[0] == ["dataset=halfcheetah-medium", "backbone=min_gru", "seed=0"]
    assert runs[-1] == ["dataset=walker2d-medium", "backbone=min_lstm", "seed=1"]
    assert len(overrides_of("dataset=glob(*-medium*)")) == 9
    assert len(overrides_of("dataset=glob(*-medium*,exclude=hopper*)")) == 6
    assert overrides_of("seed=choice(5,7)", "hydra/launcher=joblib") == [["seed=5"], ["seed=7"]]
    assert overrides_of("seed=3") == [["seed=3"]]


# Sweeps, with the number of their runs.
ALIKE = {
    "seed=range(3) backbone=min_gru,lstm trainer.learning_rate=1e-3,2e-3 steps=5": 12,
    "backbone.d_model=16,32 backbone=min_lstm backbone.expansion=1": 2,
    "policy.hidden=[0],[1,2],velocities,null experiment=bc,bc_top10": 8,
    "policy.tokens=1 backbone.n_layer=1,2 experiment=decision_transformer,bc": 4,
    "policy={tokens:3} policy.tokens=1 seed=1,2": 2,
    "trainer={learning_rate:1e-3},{warmup:5}": 2,  # the second run does not have the first's
    "dataset=minari dataset.id=a/b-v0,'c,d' run_dir='x=y',z": 4,
    "dataset=mix dataset.parts=[hopper-medium],[hopper-medium,hopper-medium-replay]": 2,
}


@pytest.mark.parametrize("arguments", ALIKE)
def test_each_run_of_a_sweep_is_what_hydra_composes_for_it_alone(arguments):
    runs = runs_of(*arguments.split())
    assert len(runs) == ALIKE[arguments]
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        for overrides, config in runs:
            assert config == to_dataclass(composed(overrides, "train"))


WRONG = {
    "dataset=glob(*-mediun)": r"is a sweep over nothing; there are: .*hopper-med",
    "seed=range(0)": r"seed=range\(0\) is a sweep over nothing",
    "seed=range(3": r"'seed=range\(3' is not an override; a sweep is key=a,b or 'key=range\(3\)'",
    "seed=range(0,1,0)": r"cannot be swept .*zero",
    "seed=glob(*)": r"is a sweep over nothing; there are: none",
    "seed=interval(0,1)": r"cannot be swept .*INTERVAL.*a sweep is a,b or range",
    "backbone=min_gru,min_lst": r"backbone 'min_lst' does not exist \(did you mean 'min_lstm'",
    "steps=3,many": r"steps=many cannot be used: .*Integer",
    "steps=3,0": r"steps is 0; it must be at least 1",
    "stepz=1,2": r"key 'stepz' does not exist \(did you mean 'steps'\?\)",
    "hydra/launcher=slurm": r"hydra/launcher 'slurm' does not exist; there are: .*submitit_slurm",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_sweep_that_cannot_be_made_is_refused_before_it_starts(override):
    with pytest.raises(UserError, match=WRONG[override]):
        runs_of(override)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_launcher_that_is_not_installed_says_how_to_get_it():
    with pytest.raises(UserError, match=r'pip install -e "\.\[ray\]"$'):
        runs_of("hydra/launcher=ray")


REFUSED = {
    "run_dir=x seed=0,1": r"two runs of the sweep have the run folder x: .*seed=0, and .*seed=1",
    "device=auto,cpu": r"two runs of the sweep have the run folder runs/.*device=cpu",
    "hydra/launcher=joblib hydra.launcher.jobs=2 seed=0,1": r"key 'jobs' does not exist in hydra",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_sweep_without_its_own_folders_or_launcher_is_refused(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=REFUSED[arguments]):
        run_sweep("train", PROGRAM, runs_of(*arguments.split()), arguments.split())
    assert not list(tmp_path.iterdir())


def test_more_than_one_run_needs_the_flag(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=0,1"])
    with pytest.raises(SystemExit):
        command.run("train", command.Program(print))
    assert capsys.readouterr().err == "error: 2 runs are asked for; start a sweep with -m.\n"
