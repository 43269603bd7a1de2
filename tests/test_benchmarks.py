"""Programs of benchmarks/ that nothing else runs, at sizes that show only that they work."""

import csv
import importlib.util
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from programs import ROOT, SMALL

from configs.schema import register
from envs.simulation.rollout import rollout, start_seeds
from envs.tasks import Evaluation


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_the_gpu_benchmark_works_and_its_checks_hold_where_triton_is_interpreted(start, tmp_path):
    """With the kernels' own code, without a GPU: what runs on one starts here first."""
    pytest.importorskip("triton")
    variables = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    arguments = ("--device", "cpu", "--quick", "--out", tmp_path)
    done = start("benchmarks/gpu.py", *arguments, variables=variables)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "gpu_quick_check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 20 and {row["holds"] for row in rows} == {"True"}
    for table in ("layers", "headline"):
        assert len((tmp_path / f"gpu_quick_{table}.csv").read_text().splitlines()) > 3


def test_the_main_job_is_taken_apart(start, tmp_path):
    arguments = ("--rounds", "1", "--out", tmp_path, "--overrides", *SMALL, "steps=40")
    done = start("benchmarks/main_job.py", *arguments, variables={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    with (tmp_path / "main_job.csv").open() as file:
        seconds = {row["part"]: float(row["seconds"]) for row in csv.DictReader(file)}
    with (tmp_path / "main_job_total.csv").open() as file:
        (total,) = csv.DictReader(file)
    assert seconds.keys() >= {"start Python, import", "make or read the data", "updates", "save"}
    assert min(seconds.values()) >= 0
    # Nothing is counted twice, and nothing is left out.
    assert sum(seconds.values()) == pytest.approx(float(total["seconds"]), abs=0.5)


def test_peers_without_d3rlpy_end_in_one_sentence_before_any_work(start, tmp_path):
    if importlib.util.find_spec("d3rlpy"):
        pytest.skip("d3rlpy is installed here")
    done = start("benchmarks/peers.py", "--python", sys.executable, "--out", tmp_path / "peers")
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: --python \S+ cannot import d3rlpy; .*give its Python\.\n", done.stderr
    )
    assert not (tmp_path / "peers").exists()


def test_peers_get_the_steps_of_the_data_with_their_ends(store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    peers = importlib.import_module("peers")
    register()
    data = peers.load_data("hopper-medium-replay", ["dataset.steps=1500"])
    peers.write_data(data, tmp_path / "data.npz")
    arrays, episodes = np.load(tmp_path / "data.npz"), data.episodes
    assert arrays["observations"].shape == (episodes.n_steps, 11)
    # Each episode ends either way, once, at its last step.
    ends = arrays["terminals"] + arrays["timeouts"]
    assert np.flatnonzero(ends).tolist() == [end - 1 for _, end in episodes.borders]
    assert ends.max() == 1
    assert arrays["rewards"].sum() == pytest.approx(episodes.returns.sum(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # what d3rlpy writes
def test_a_peer_is_scored_from_its_torchscript(store, tmp_path, monkeypatch):
    """The same policy as a module of this test, played by hand."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    peers = importlib.import_module("peers")
    torch.manual_seed(0)
    policy = torch.nn.Sequential(torch.nn.Linear(11, 3), torch.nn.Tanh())
    torch.jit.save(torch.jit.trace(policy, torch.zeros(1, 11)), tmp_path / "policy.pt")
    evaluation = Evaluation("Hopper-v5", "carried", 1, (0.0,), episodes=2)
    found = rollout(peers.Peer(tmp_path / "policy.pt"), evaluation).episode_returns[0]
    environment = gym.make("Hopper-v5")
    for seed, expected in zip(start_seeds(evaluation.seed, np.arange(2)), found, strict=True):
        observation, earned, ended = environment.reset(seed=int(seed))[0], 0.0, False
        while not ended:
            with torch.no_grad():
                action = policy(torch.tensor(observation, dtype=torch.float32)[None])[0].numpy()
            observation, reward, terminated, truncated, _ = environment.step(action)
            earned, ended = earned + reward, terminated or truncated
        assert earned == pytest.approx(expected, rel=1e-3)
