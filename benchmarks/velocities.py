"""Why hidden velocities cost so much: can they be told from positions, and by whom?

    python benchmarks/velocities.py --jobs 2

For each medium-expert set a network estimates the velocities from the last four positions and the
three actions between them: least squares, then two hidden layers, trained for longer and longer, on
nine tenths of the episodes. R2 is of the other tenth. Then a policy that was trained with all
observations plays 100 episodes in which it is given the estimates in place of the velocities.
Prints and saves velocities.csv: R2, as the mean over the velocities and the lowest of them, and
normalised scores.
"""

import argparse
import itertools
import os
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peers import load_data
from timing import ROOT, Row, printed, write_csv
from torch import Tensor, nn

from agents.acting import make_actor
from agents.checkpoint import load_policy
from common.errors import UserError, exits
from configs.schema import EvaluationConfig, register
from envs.data.episodes import Episodes
from envs.simulation.rollout import Actor, rollout
from envs.tasks import TASKS, hidden_indices
from eval import read_description
from train import train

NAMES = ["hopper", "walker2d", "halfcheetah"]  # the tasks of the benchmark


class Estimator:
    """Estimates standardised velocities from the last `steps` positions and the actions between.

    Before an episode's first step its first position is repeated, and the actions are 0.
    """

    def __init__(
        self, episodes: Episodes, velocities: list[int], steps: int, updates: int, seed: int
    ) -> None:
        """Fits nine tenths of the episodes, and measures `r2` (velocities,) on the other tenth.

        Args:
            episodes: The data.
            velocities: Indices of the velocities among the observations.
            steps: How many positions are seen.
            updates: Of the network, 512 steps each; 0 solves for least squares.
            seed: Fixes the network's initialisation and batches.
        """
        self.steps, self.velocities = steps, velocities
        observations = np.asarray(episodes.observations, np.float32)
        self.positions = [i for i in range(observations.shape[1]) if i not in velocities]
        self.mean, self.deviation = observations.mean(0), observations.std(0) + 1e-6
        standardised = (observations - self.mean) / self.deviation

        # The inputs of every step, and the episode that it belongs to.
        starts, ends = np.array(list(episodes.borders)).T
        episode = np.repeat(np.arange(len(starts)), ends - starts)
        step, start = np.arange(len(observations)), starts[episode]
        seen, actions = standardised[:, self.positions], np.asarray(episodes.actions, np.float32)
        inputs = join(
            [seen[np.maximum(step - j, start)] for j in range(steps)],
            [np.where((step - j >= start)[:, None], actions[step - j], 0) for j in range(1, steps)],
        )

        # A tenth of the episodes is held out.
        wanted = torch.from_numpy(standardised[:, velocities])
        held_out = torch.from_numpy(
            np.isin(episode, np.random.default_rng(0).permutation(len(starts))[::10])
        )
        self._network = fit(inputs[~held_out], wanted[~held_out], updates, seed)
        with torch.inference_mode():
            errors = wanted[held_out] - self._network(inputs[held_out])
        self.r2 = 1 - errors.square().mean(0) / wanted[held_out].var(0)

    def __call__(self, positions: list[np.ndarray], actions: list[np.ndarray]) -> np.ndarray:
        """Returns velocities (batch, velocities) in their units; what is given begins with now."""
        standardised = self._network(join(positions, actions)).numpy()
        return standardised * self.deviation[self.velocities] + self.mean[self.velocities]


def join(positions: list[np.ndarray], actions: list[np.ndarray]) -> Tensor:
    """Joins positions and actions, (batch, channels) each, to an estimator's inputs."""
    ones = np.ones((len(positions[0]), 1))
    return torch.from_numpy(np.concatenate([*positions, *actions, ones], 1).astype(np.float32))


def fit(inputs: Tensor, wanted: Tensor, updates: int, seed: int) -> nn.Module:
    """Fits a network of two hidden layers; without updates, least squares."""
    n_in, n_out = inputs.shape[1], wanted.shape[1]
    torch.manual_seed(seed)
    if not updates:
        linear = nn.Linear(n_in, n_out, bias=False)
        # Of minimal norm: the actions of a policy that does not vary may depend on each other.
        solution = torch.linalg.lstsq(inputs.double(), wanted.double(), driver="gelsd").solution
        linear.weight.data = solution.T.float().contiguous()
        return linear
    network = nn.Sequential(
        *(nn.Linear(n_in, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, n_out))
    )
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        batch = torch.randint(len(inputs), (512,))
        loss = (network(inputs[batch]) - wanted[batch]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


class EstimatingActor:
    """An actor that is given estimates in place of the velocities."""

    def __init__(self, actor: Actor, estimator: Estimator, action_dim: int) -> None:
        self._actor, self._estimator, self._action_dim = actor, estimator, action_dim

    def initial_state(self, batch_size: int, target_return: Tensor) -> Any:
        """Returns the actor's state, and no past."""
        return self._actor.initial_state(batch_size, target_return), [], []

    def act(
        self, observation: Tensor, reward: Tensor, state: Any, is_first: Tensor
    ) -> tuple[Tensor, Any]:
        """Chooses one action for each row, (batch, action_dim)."""
        inner, positions, actions = state
        known, begins = self._estimator, is_first.numpy()[:, None]
        earlier = known.steps - 1
        given = observation.numpy().copy()
        now = ((given - known.mean) / known.deviation)[:, known.positions]
        # Where an episode begins, the past is its first position, and no action.
        positions = positions or [now] * earlier
        actions = actions or [np.zeros((len(now), self._action_dim))] * earlier
        positions = [now, *(np.where(begins, now, old) for old in positions)]
        actions = [np.where(begins, 0, old) for old in actions]
        given[:, known.velocities] = known(positions, actions)
        chosen, inner = self._actor.act(torch.from_numpy(given), reward, inner, is_first)
        actions = [chosen.float().numpy().clip(-1, 1), *actions]
        return chosen, (inner, positions[:earlier], actions[:earlier])


def play(job: tuple[int, str], steps: list[int], updates: list[int]) -> list[Row]:
    """Returns the rows of one policy: of the true velocities, and of each estimator."""
    seed, task = job
    name = f"{task}-medium-expert"
    torch.set_num_threads(1)
    register()
    with TemporaryDirectory() as folder:
        asked = EvaluationConfig(every=0)
        keys = {"steps": 3000, "precision": "bfloat16", "evaluation": asked}
        run = train(name, seed=seed, run_dir=f"{folder}/run", **keys)
        policy, description, _ = load_policy(run.folder)
        _, evaluation = read_description(run.folder, description)
        true_score = run.scores[0].value
    first: Row = {
        "task": task,
        "seed": seed,
        "positions": "",
        "updates": "",
        "R2": "",
        "lowest": "",
    }
    rows = [first | {"score": round(true_score, 1)}]

    episodes = load_data(name, []).episodes
    velocities = hidden_indices("velocities", evaluation.environment_id)
    assert velocities is not None
    for n_steps, n_updates in itertools.product(steps, updates):
        estimator = Estimator(episodes, velocities, n_steps, n_updates, seed)
        actor = make_actor(policy, evaluation.rollout, evaluation.context_length)
        result = rollout(EstimatingActor(actor, estimator, policy.action_dim), evaluation)
        score = TASKS[task].reference.score(float(result.episode_returns.mean()))
        found = {"positions": n_steps, "updates": n_updates, "score": round(score, 1)}
        r2 = {
            "R2": round(float(estimator.r2.mean()), 3),
            "lowest": round(float(estimator.r2.min()), 3),
        }
        rows.append(first | found | r2)
    return rows


def main() -> None:
    """Estimates and plays on all three tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--positions", nargs="+", type=int, default=[4], help="seen at once")
    parser.add_argument("--updates", nargs="+", type=int, default=[0, 5000, 20_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="policies at once, each on one thread")
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=results, help="folder of the table")
    given = parser.parse_args()
    if min(given.positions) < 1 or min(given.updates) < 0 or given.jobs < 1:
        raise UserError(
            "--positions and --jobs must be 1 or more and --updates 0 or more; they are "
            f"{given.positions}, {given.jobs} and {given.updates}."
        )
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = itertools.product(given.seeds, given.tasks)
    one = partial(play, steps=given.positions, updates=given.updates)
    with get_context("spawn").Pool(given.jobs, maxtasksperchild=1) as pool:
        rows = printed(row for rows in pool.imap(one, jobs) for row in rows)
    write_csv(given.out / "velocities.csv", rows)


if __name__ == "__main__":
    with exits():
        main()
