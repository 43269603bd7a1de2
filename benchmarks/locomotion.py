"""The benchmark: every backbone on the nine built-in data sets, and what the design leaves open.

    python benchmarks/locomotion.py --jobs 2              # trains what is missing; stop it any time
    python benchmarks/locomotion.py --jobs 2 --evaluate   # other targets, harder conditions
    python compare.py benchmarks/results/locomotion       # tables and pictures

Every run is `python train.py` with the overrides below: 3,000 updates of 1,280 steps in bfloat16,
and otherwise the defaults. Runs are trained in runs/locomotion and kept as rows of the tables in
benchmarks/results/locomotion (`--results` names another folder for both); a run that has a row is
not trained again. All runs of one seed come before those of the next, so that an unfinished
benchmark is already a comparison. A run takes 2.5 to 7 minutes on one core where bfloat16 is fast,
and longer for Decision Transformer, which trains on three tokens a step and runs its window again
at each step of the rollout.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agents.checkpoint import load_description  # noqa: E402
from common.errors import UserError, exits  # noqa: E402
from configs.launch import command  # noqa: E402
from configs.schema import register  # noqa: E402
from envs.behaviors import RECIPES  # noqa: E402
from eval import read_description, resolve  # noqa: E402
from reports.run_files import read_runs, write_tables  # noqa: E402
from reports.runs import Run  # noqa: E402
from reports.scores import scores_file  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"

COMMON = ["protocol.batch_steps=1280", "steps=3000", "evaluation.every=0", "precision=bfloat16"]
# 64 windows of 20 steps an update. Every rollout sees a past of that length: recurrent backbones
# keep two states that are reset half a window apart, attention runs its window again.
WINDOWED = ["protocol.name=windowed", "protocol.context_length=20", "rollout=rolling"]
UNIFORM = "protocol.best_share=0"
# Decision Transformer's network and rollout; optimiser, schedule and target of the others.
DECISION_TRANSFORMER = [
    *("experiment=decision_transformer", "evaluation.target=auto"),
    *("trainer.learning_rate=1e-3", "trainer.warmup=100", "trainer.schedule=cosine"),
    *("trainer.gradient_clip=1.0", "trainer.ema_decay=0.99"),
]
TASKS = ("hopper", "walker2d", "halfcheetah")
MEDIUM = [f"{task}-medium" for task in TASKS]
NINE = [*MEDIUM, *(f"{task}-medium-{kind}" for kind in ("replay", "expert") for task in TASKS)]
REPLAY = [f"{task}-medium-replay" for task in TASKS]
EXPERT = [f"{task}-medium-expert" for task in TASKS]
THREE = ["hopper-medium-replay", "walker2d-medium", "halfcheetah-medium-expert"]

# The transformer in the policy of the others: one token a step, no timesteps.
ATTENTION = [*WINDOWED, "backbone=attention", "rollout=window"]
EMBEDDED = "policy.timestep_embedding=true"

# Name of runs: their overrides.
MAIN: dict[str, list[str]] = {
    "min_gru": [],
    "bc_top10": ["experiment=bc_top10"],
    "bc_top10_windowed": ["experiment=bc_top10", *WINDOWED],
    "attention": ATTENTION,
    "min_gru_uniform": [UNIFORM],
    "bc": ["experiment=bc"],
}
OTHERS: dict[str, list[str]] = {
    name: [f"backbone={name}"] for name in ("min_lstm", "gru", "lstm", "aaren", "s4d", "mamba")
}
OTHERS["decision_transformer"] = DECISION_TRANSFORMER
# Of the same width, GRU, LSTM and Mamba have 1.4 to 1.6 times the parameters of min_gru; this, 1.4.
OTHERS["min_gru_expansion_2"] = ["backbone.expansion=2"]
# Which part of Decision Transformer lowers its scores at so few updates: its tokens, its timesteps?
TRANSFORMERS: dict[str, list[str]] = {
    "attention_timestep": [*ATTENTION, EMBEDDED],
    "decision_transformer_no_timestep": [*DECISION_TRANSFORMER, "policy.timestep_embedding=false"],
}
# Each changes one thing in min_gru.
ABLATIONS: dict[str, list[str]] = {
    "windowed": WINDOWED,
    "whole_episodes": ["protocol.name=whole_episodes"],
    "best_share_75": ["protocol.best_share=0.75"],
    "learning_rate_2e-3": ["trainer.learning_rate=2e-3"],
    "no_average": ["trainer.ema_decay=0"],
    "float32": ["precision=float32"],
    "no_previous_action": ["policy.previous_action=false"],
    "return_before_head": ["policy.return_before_head=true"],
    "timestep_embedding": [EMBEDDED],
    "three_tokens": ["policy.tokens=3"],
    "convolution": ["backbone.convolution=4"],
    "gate_bias_0": ["backbone.gate_bias=0"],  # forgets half of the state at each step
    "gate_bias_minus_4": ["backbone.gate_bias=-4"],
    "no_restart": ["protocol.restart=0"],  # reset only where an episode begins
}
# Dropout, which was the default before, with what was compared under it; cloning has it by default.
DROPOUT = {
    f"{name}_dropout": [*overrides, "backbone.dropout=0.1"]
    for name, overrides in (MAIN | ABLATIONS).items()
    if name in {"min_gru", "min_gru_uniform", "attention", "best_share_75", "learning_rate_2e-3"}
}
DROPOUT["bc_top10_no_dropout"] = ["experiment=bc_top10", "backbone.dropout=0"]
# Whether a longer training changes the ranking: 25.6 million steps, as many as 100,000 updates of
# the peers see (peers.py).
LONGER = {
    f"{name}_longer": [*MAIN[name], "steps=20000"] for name in ("min_gru", "bc_top10", "attention")
}
# With a critic; and, of a shorter one, weights by advantage alone and with Q, lightly and strongly.
VALUE_HELP = {"min_gru_critic": ["experiment=value_help"]} | {
    f"min_gru_critic_q{weight}": ["critic.updates=6000", f"critic.q_weight={weight}"]
    for weight in (0, 1, 4, 20)
}
# The policy of min_gru; a critic chooses at each step between its target counted down and held.
CHOSEN = {"min_gru_chosen": ["experiment=chosen"]}
# What a memory is worth where the policy sees all observations (with the rows of `main` and
# `others`), and where it sees no velocities.
CONTEXTS: dict[str, list[str]] = {
    "bc_context_1": ["experiment=bc", *WINDOWED, "protocol.context_length=1", "rollout=window"],
    **{f"attention_context_{n}": [*ATTENTION, f"protocol.context_length={n}"] for n in (1, 5)},
}
HIDDEN = {
    f"{name}_hidden": [*overrides, "policy.hidden=velocities"]
    for name, overrides in (MAIN | OTHERS | CONTEXTS).items()
    if name in {"min_gru", "gru", "attention", *CONTEXTS}
}
# Four steps side by side before each minGRU: differences of positions are velocities.
CONVOLUTION = ABLATIONS["convolution"]
HIDDEN["min_gru_convolution"] = CONVOLUTION
HIDDEN["min_gru_convolution_hidden"] = [*CONVOLUTION, "policy.hidden=velocities"]
HIDDEN["min_gru_convolution_hidden_longer"] = [*HIDDEN["min_gru_convolution_hidden"], "steps=12000"]
GROUPS = {
    "main": (NINE, MAIN),
    "others": (NINE, OTHERS),
    "ablations": (THREE, ABLATIONS),
    "dropout": (NINE, DROPOUT),
    "transformers": (MEDIUM, TRANSFORMERS),
    "longer": (THREE, LONGER),
    "value_help": (["hopper-medium", *REPLAY], VALUE_HELP),
    "chosen": (NINE, CHOSEN),
    "hidden": (EXPERT, CONTEXTS | HIDDEN),
}
TARGETS = "episodes=50 target_fraction=[0.25,0.5,0.75,1,1.5,2]"
# What eval.py is asked of some policies: data sets, names of runs, arguments.
EVALUATIONS: list[tuple[list[str], list[str], str]] = [
    (NINE, ["min_gru"], "target=data"),
    (NINE, ["min_gru"], "target=best"),
    (NINE, ["min_gru"], "target=held"),
    (NINE, ["min_gru_chosen"], "target=best"),
    (NINE, ["min_gru_chosen"], "target=held"),
    (NINE, ["min_gru", "min_gru_uniform"], TARGETS),
    (NINE, ["min_gru"], "rollout=rolling"),
    (NINE, ["min_gru"], "rollout=window"),
    (MEDIUM, ["min_gru"], "horizon=5000"),
    (MEDIUM, ["min_gru"], "observation_noise=0.1"),
    (MEDIUM, ["min_gru"], "action_delay=1"),
]


def commands(groups: list[str], seeds: list[int]) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the overrides of every run, seed by seed."""
    for seed, group in itertools.product(seeds, groups):
        datasets, variants = GROUPS[group]
        for dataset, (name, overrides) in itertools.product(datasets, variants.items()):
            asked = [f"dataset={dataset}", f"seed={seed}", *COMMON, *overrides]
            yield f"{dataset}/{name}-seed{seed}", asked


def evaluations(seeds: list[int]) -> Iterator[tuple[str, list[str]]]:
    """Yields the name of the run and the arguments of every further evaluation."""
    for (datasets, names, arguments), seed in itertools.product(EVALUATIONS, seeds):
        for dataset, name in itertools.product(datasets, names):
            yield f"{dataset}/{name}-seed{seed}", arguments.split()


def start(*arguments: str) -> None:
    """Runs a command of this project, and prints its output if it fails."""
    print(" ".join(["$ python", *arguments]), flush=True)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        print(done.stdout.decode(errors="replace"), flush=True)


def train(folder: Path, overrides: list[str]) -> None:
    """Trains one run, or resumes it."""
    start("train.py", *overrides, f"run_dir={folder}", "resume=true")


def evaluate(folder: Path, arguments: list[str], row: Run | None) -> None:
    """Makes one further evaluation of a trained policy, unless its row has it."""
    dataset, own = read_description(ROOT / folder, load_description(ROOT / folder))
    ((_, config),) = command.check([f"run={folder}", *arguments], "eval")
    file = scores_file(resolve(config, dataset, own), own)
    if file != "scores.json" and (row is None or Path(file).stem not in row.evaluations):
        start("eval.py", f"run={folder}", *arguments)


def collect(runs: Path, results: Path) -> dict[str, Run]:
    """Adds the finished runs of the folder `runs` to the tables, and returns all rows by name.

    A run folder replaces the row of its name. If the score is still the same, the row's further
    evaluations are kept.
    """
    known: dict[str, Run] = {}
    if (results / "runs.csv").exists():
        found, problems = read_runs([results])
        if problems:
            raise problems[0]
        known = {run.name: run for run in found}
    if runs.is_dir() and any(runs.rglob("scores.json")):
        for run in read_runs([runs])[0]:
            row = known.get(run.name)
            if row is not None and row.score.return_mean == run.score.return_mean:
                run = replace(run, evaluations=row.evaluations | run.evaluations)
            known[run.name] = run
        write_tables(results, known.values())
    return known


def main() -> None:
    """Trains or evaluates what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    names = list(dict.fromkeys(name for _, variants in GROUPS.values() for name in variants))
    only = "only these runs of the groups"
    parser.add_argument("--names", nargs="+", default=[], choices=names, help=only)
    parser.add_argument("--datasets", nargs="+", default=NINE, choices=NINE)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread")
    parser.add_argument("--overrides", nargs="+", default=[], help="further keys of every run")
    both = "folder of the runs in runs/, and of their tables in benchmarks/results/"
    parser.add_argument("--results", default="locomotion", metavar="NAME", help=both)
    parser.add_argument("--evaluate", action="store_true", help="evaluate what was trained")
    parser.add_argument("--dry-run", action="store_true", help="only print what is missing")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if not re.fullmatch(r"\w[\w.-]*", given.results):
        raise UserError(
            f"--results is {given.results!r}; it must be the name of one folder, such as mine."
        )
    if given.jobs < 1:
        raise UserError(f"--jobs is {given.jobs}; it must be 1 or more.")
    folder, results = Path("runs", given.results), RESULTS / given.results
    known = collect(ROOT / folder, results)

    def wanted(run: tuple[str, list[str]]) -> bool:
        dataset, name = run[0].rsplit("-seed", 1)[0].split("/")
        return dataset in given.datasets and name in (given.names or names)

    runs = list(filter(wanted, commands(given.groups, given.seeds)))
    chosen = {name for name, _ in runs}
    asked = [e for e in evaluations(given.seeds) if e[0] in chosen]
    # A policy that was trained on another machine has a row, but no folder.
    able = [e for e in asked if (ROOT / folder / e[0] / "scores.json").exists()]
    # Rows of an earlier version of the built-in data are made anew.
    current = {name for name, run in known.items() if run.task in RECIPES}
    missing = [run for run in runs if run[0] not in current]
    if given.evaluate:
        print(f"The policies of {len(able)} of {len(asked)} evaluations are here.", flush=True)
    else:
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished.", flush=True)
    if given.dry_run:
        return
    try:
        with ThreadPoolExecutor(given.jobs) as pool:
            if given.evaluate:
                register()
                list(pool.map(lambda e: evaluate(folder / e[0], e[1], known.get(e[0])), able))
            else:
                list(pool.map(lambda r: train(folder / r[0], r[1] + given.overrides), missing))
    finally:
        collect(ROOT / folder, results)


if __name__ == "__main__":
    with exits():
        main()
