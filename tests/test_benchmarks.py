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
from envs.data.episodes import Episodes
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
    wrong = ("--updates", "0", "--out", tmp_path / "peers")
    done = start("benchmarks/peers.py", "--python", sys.executable, *wrong)
    assert done.stderr == "error: --jobs and --updates must be 1 or more; they are 1 and 0.\n"
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


def test_estimated_velocities_are_the_true_ones_where_the_past_tells_them(monkeypatch):
    """A velocity is a difference of positions and half an action: exactly so at every step."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from velocities import EstimatingActor, Estimator

    random, lengths = np.random.default_rng(0), [7, 9, 8, 6] * 10
    positions = [random.normal(size=(n, 2)).astype(np.float32) for n in lengths]
    actions = [random.uniform(-1, 1, (n, 1)).astype(np.float32) for n in lengths]
    observations = []
    for p, a in zip(positions, actions, strict=True):
        earlier = np.concatenate([p[:1], p[:-1]]), np.concatenate([0 * a[:1], a[:-1]])
        observations.append(np.concatenate([p, p - earlier[0] + earlier[1] / 2], 1))
    count = sum(lengths)
    ends = np.zeros(count, bool)
    ends[np.cumsum(lengths) - 1] = True
    episodes = Episodes.from_arrays(
        observations=np.concatenate(observations),
        actions=np.concatenate(actions),
        rewards=np.ones(count),
        terminations=ends,
        truncations=np.zeros(count, bool),
        action_low=np.array([-1.0]),
        action_high=np.array([1.0]),
        dataset_id="exact",
    )
    estimator = Estimator(episodes, [2, 3], steps=3, updates=0, seed=0)
    assert estimator.r2 == pytest.approx(1, abs=1e-4)

    class Replay:
        """Does what the data did, and keeps what it was given."""

        def __init__(self, rows):
            self.rows, self.given = rows, []

        def initial_state(self, batch_size, target_return):
            return 0

        def act(self, observation, reward, state, is_first):
            self.given.append(observation.numpy())
            return torch.from_numpy(self.rows[state]), state + 1

    # Two episodes side by side, then two others.
    pairs = [(0, 4), (1, 5)]
    replay = Replay(np.concatenate([np.stack([actions[i] for i in pair], 1) for pair in pairs]))
    actor = EstimatingActor(replay, estimator, action_dim=1)
    state, wanted = actor.initial_state(2, torch.zeros(2)), []
    for pair in pairs:
        for t, row in enumerate(np.stack([observations[i] for i in pair], 1)):
            wanted.append(row)
            blind = torch.from_numpy(row * [1, 1, 0, 0]).float()
            with torch.inference_mode():
                _, state = actor.act(blind, torch.zeros(2), state, torch.full((2,), t == 0))
    assert np.stack(replay.given) == pytest.approx(np.stack(wanted), abs=2e-3)
