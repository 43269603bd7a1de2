"""When to hold the target: a policy for each behaviour policy that is not in the medium sets.

    python benchmarks/holding.py --jobs 2

Each data set has 200,000 steps of one snapshot of the behaviour policies' training, other than the
medium and the expert one. A policy is trained on it (3,000 updates, otherwise the defaults) and
asked for the best return of its data in two ways: counted down by the rewards received, and held
at every step. Prints and saves holding.csv: normalised scores, beside the share of the best 10 % of
the episodes that end by termination and whether evaluation.target=auto holds.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import ROOT, Row, printed, write_csv

from common.errors import UserError, exits
from configs.schema import EvaluationConfig
from envs.behaviors import DEFAULT_STEPS, SNAPSHOTS, Recipe
from envs.behaviors.collect import collect, flat_arrays
from envs.data.episodes import TYPES, Episodes
from envs.data.spaces import environment_spaces
from envs.tasks import TASKS
from eval import evaluate
from train import train

Job = tuple[str, int, int]  # task, snapshot, seed


def jobs(seeds: list[int]) -> Iterator[Job]:
    """Yields a job for each snapshot and seed."""
    for seed, (task, known) in itertools.product(seeds, SNAPSHOTS.items()):
        others = [step for step in known.steps() if step not in (known.medium, known.expert)]
        yield from ((task, step, seed) for step in others)


def one_policy(task: str, snapshot: int, seed: int) -> Episodes:
    """Collects the data of one snapshot."""
    recipe = Recipe(f"one/{task}/{snapshot}-v0", TASKS[task], "one", (snapshot,), (1,))
    arrays = flat_arrays(collect(recipe, DEFAULT_STEPS, seed))
    bounds = environment_spaces(recipe.task.environment_id)[1]
    return Episodes.from_arrays(
        **{name: arrays[name] for name in TYPES},
        action_low=bounds.low,
        action_high=bounds.high,
        dataset_id=recipe.dataset_id,
        environment_id=recipe.task.environment_id,
        reference=recipe.task.reference,
    )


def compare(job: Job) -> Row:
    """Trains and scores one policy."""
    task, snapshot, seed = job
    episodes = one_policy(task, snapshot, seed)
    best = episodes.best(0.1)
    with TemporaryDirectory() as folder:
        asked = EvaluationConfig(every=0, target="best")
        run = train(episodes, steps=3000, seed=seed, run_dir=f"{folder}/run", evaluation=asked)
        scores = {"counted down": run.scores[0], "held": evaluate(run.folder, target="held")[0]}
        reference = episodes.reference
        assert reference is not None
        return {
            "task": task,
            "snapshot": snapshot,
            "seed": seed,
            "best tenth terminated": round(float(episodes.terminated[best].mean()), 2),
            "cut short": episodes.cut_short,
            "best tenth": round(reference.score(episodes.top_fraction_return()), 1),
            "best return": round(reference.score(float(episodes.returns.max())), 1),
            **{name: round(score.value, 1) for name, score in scores.items()},
        }


def main() -> None:
    """Compares both ways on all data sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="policies at once, each on one thread")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    results = ROOT / "benchmarks" / "results"
    parser.add_argument("--out", type=Path, default=results, help="folder of the table")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if given.jobs < 1:
        raise UserError(f"--jobs is {given.jobs}; it must be 1 or more.")
    with get_context("spawn").Pool(given.jobs, maxtasksperchild=1) as pool:
        rows = printed(pool.imap(compare, jobs(given.seeds)))
    write_csv(given.out / "holding.csv", rows)


if __name__ == "__main__":
    with exits():
        main()
