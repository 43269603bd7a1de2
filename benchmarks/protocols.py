"""How to train and how to act: every protocol on the built-in data, over seeds.

    python benchmarks/protocols.py --datasets hopper-medium walker2d-medium --seeds 0 1 2

Each variant is `python train.py` with a few overrides; a run folder that is already complete is not
trained again, so a comparison that was stopped goes on where it stood. Windowed policies are scored
in all three ways of acting, the others with the state carried. Prints the table and writes every
single score to benchmarks/results/protocols.csv. Plan for 2 to 4 minutes a run and core.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agents.acting import ROLLOUTS  # noqa: E402
from agents.checkpoint import load_policy  # noqa: E402
from configs.schema import EvalConfig, EvaluationConfig  # noqa: E402
from envs.scores import read_scores, write_scores  # noqa: E402
from envs.statistics import student_half_width  # noqa: E402
from eval import score_policy  # noqa: E402

VARIANTS: dict[str, list[str]] = {
    "windowed": [],
    "streamed": ["experiment=streamed"],
    "carried": ["experiment=carried"],
    "no_previous_action": ["policy.previous_action=false"],
    "return_before_head": ["policy.return_before_head=true"],
    "gate_bias_2": ["backbone.gate_bias=2"],
    "context_64": ["protocol.context_length=64"],
    "burn_in_10": ["protocol.burn_in=10"],
    "no_ema": ["trainer.ema_decay=0"],
    "min_lstm": ["backbone=min_lstm"],
}
DATASETS = ["hopper-medium", "walker2d-medium", "halfcheetah-medium", "hopper-medium-replay"]
COLUMNS = ["dataset", "variant", "rollout", "seed", "score", "score_std", "return", "length"]


def train(dataset: str, variant: str, seed: int, folder: Path) -> None:
    """Trains one run, unless its folder holds a finished one."""
    if (folder / "scores.json").exists():
        return
    command = [sys.executable, "train.py", f"dataset={dataset}", f"seed={seed}"]
    command += [*VARIANTS[variant], f"run_dir={folder}", "resume=true"]
    print("$", *command[1:], flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def score(folder: Path, episodes: int) -> None:
    """Adds scores-{rollout}.json for each way of acting that the run was trained for."""
    policy, description, step = load_policy(folder)
    trained_on_windows = "name: windowed" in (folder / "config.yaml").read_text()
    for rollout in ROLLOUTS if trained_on_windows else ["carried"]:
        path = folder / f"scores-{rollout}.json"
        if not path.exists():
            description.rollout = rollout
            config = EvalConfig(str(folder), episodes, seed=EvaluationConfig.seed)
            write_scores(path, score_policy(policy, description, step, config=config))


def collect(runs: Path) -> list[dict[str, str]]:
    """Reads the scores of every run below a folder."""
    rows = []
    for path in sorted(runs.glob("*/*/scores-*.json")):
        (result,) = read_scores(path)
        variant, _, seed = path.parent.name.rpartition("-seed")
        values = (
            path.parent.parent.name,
            variant,
            result.rollout,
            seed,
            f"{result.normalized_score_mean:.2f}",
            f"{result.normalized_score_std:.2f}",
            f"{result.return_mean:.1f}",
            f"{result.length_mean:.1f}",
        )
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def show(rows: list[dict[str, str]], console: Console) -> None:
    """Prints the mean score of each variant and the range over its seeds."""
    datasets = [d for d in DATASETS if any(row["dataset"] == d for row in rows)]
    datasets += sorted({row["dataset"] for row in rows} - set(datasets))
    table = Table(title="normalised score: mean over seeds (lowest to highest, seeds)")
    for column in ("variant", "acting", *datasets):
        table.add_column(column)
    for variant, rollout in itertools.product(VARIANTS, ROLLOUTS):
        cells = []
        for dataset in datasets:
            scores = [
                float(row["score"])
                for row in rows
                if (row["dataset"], row["variant"], row["rollout"]) == (dataset, variant, rollout)
            ]
            span = f"({min(scores):.1f} to {max(scores):.1f}, {len(scores)})" if scores else ""
            cells.append(f"{statistics.mean(scores):.1f} {span}" if scores else "")
        if any(cells):
            table.add_row(variant, rollout, *cells)
    console.print(table)
    for rollout in ("carried", "rolling"):
        differences = against_window(rows, rollout)
        half_width = student_half_width(differences)
        if half_width is not None:
            console.print(
                f"One policy trained on windows, acting {rollout} instead of by window: "
                f"{differences.mean():+.1f} ± {half_width:.1f} points (Student's 95 % interval of "
                f"the mean over {len(differences)} policies; {(differences > 0).sum()} are better)."
            )


def against_window(rows: list[dict[str, str]], rollout: str) -> np.ndarray:
    """Score of each policy in one way of acting, less that of the same policy run by window."""
    scores: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        policy = (row["dataset"], row["variant"], row["seed"])
        scores.setdefault(policy, {})[row["rollout"]] = float(row["score"])
    return np.array([by[rollout] - by["window"] for by in scores.values() if "window" in by])


def main() -> None:
    """Trains what is missing, scores it, prints and saves the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=DATASETS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=50, help="of each score")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "protocols")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-show", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if not arguments.only_show:
        for seed, variant, dataset in itertools.product(
            arguments.seeds, arguments.variants, arguments.datasets
        ):
            folder = arguments.runs.resolve() / dataset / f"{variant}-seed{seed}"
            train(dataset, variant, seed, folder)
            score(folder, arguments.episodes)
    rows = collect(arguments.runs)
    results = ROOT / "benchmarks" / "results" / "protocols.csv"
    results.parent.mkdir(exist_ok=True)
    with open(results, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    show(rows, Console(width=200))


if __name__ == "__main__":
    main()
