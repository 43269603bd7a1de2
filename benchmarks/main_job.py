"""Where the time of `python train.py` goes, from nothing to a scored policy.

    python benchmarks/main_job.py
    python benchmarks/main_job.py --other ../checkout-of-another-commit

Each round runs the main job in a folder of its own, without data, and takes its parts: the work of
the named functions, and the rest. Beside a part stands its floor, measured after it in the same
process: the physics alone (the same number of steps with actions that are ready), or the matrix
products alone (those of each Linear, forwards and backwards, in the precision of the run). With
--other, the same command of another checkout is timed in turn with it, as a whole: its functions
have other names. Medians over the rounds. Saves main_job.csv and main_job_total.csv.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from statistics import median
from typing import Any

from timing import ROOT, Row, interleaved, make_parser, printed, write_csv

# Part -> the functions whose time it is, as module and name; one inside another is taken out of it.
PARTS: dict[str, list[tuple[str, str]]] = {
    "make or read the data": [("train", "read_data")],
    "updates": [("agents.trainer", "Trainer.update")],
    "save": [("agents.trainer", "Trainer.save"), ("train", "save_description")],
    "evaluations": [("train", "score_policy")],
}


def main() -> None:
    """Runs the main job in rounds, prints and saves."""
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--other", type=Path, help="another checkout, timed in turn")
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--overrides", nargs="*", default=[], help="keys of train.py")
    arguments = parser.parse_args()
    if arguments.parts:
        return run_in_parts(arguments.parts, arguments.overrides)
    found: list[dict[str, dict[str, float]]] = []
    measures = {"this checkout": partial(job, ROOT, found, arguments.overrides)}
    if arguments.other:
        measures["the other"] = partial(job, arguments.other.resolve(), None, arguments.overrides)
    samples = interleaved(measures, arguments.rounds, warm_up=0)

    whole = median(samples["this checkout"])
    rows: list[Row] = []
    for name in found[0]:
        seconds = median(parts[name]["seconds"] for parts in found)
        floor = median(parts[name].get("floor", 0.0) for parts in found)
        rows.append(
            {
                "part": name,
                "seconds": f"{seconds:.1f}",
                "of the whole": f"{100 * seconds / whole:.0f} %",
                "floor": f"{floor:.1f}" if floor else "",
                "x floor": f"{seconds / floor:.2f}" if floor else "",
            }
        )
    write_csv(arguments.out / "main_job.csv", printed(rows))
    totals: list[Row] = [
        {
            "what": name,
            "seconds": f"{median(values):.1f}",
            "x the other": f"{median(values) / median(samples['the other']):.2f}"
            if arguments.other
            else "",
            "rounds": len(values),
        }
        for name, values in samples.items()
    ]
    write_csv(arguments.out / "main_job_total.csv", printed(totals))


def job(tree: Path, parts: list[dict[str, dict[str, float]]] | None, overrides: list[str]) -> float:
    """Runs the main job of a checkout from nothing; returns its seconds, and appends its parts."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "parts.json")
        program = ["train.py"]
        if parts is not None:
            program = ["benchmarks/main_job.py", "--parts", str(out), "--overrides"]
        command = [sys.executable, *program, *overrides, f"run_dir={folder}/run"]
        begin = time.time()
        environment = os.environ | {
            "MINARI_DATASETS_PATH": str(Path(folder, "datasets")),
            "PYTHONPATH": str(tree),
            "BEGUN": str(begin),
        }
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE)
        seconds = time.time() - begin
        if parts is not None:
            measured = json.loads(out.read_text())
            seconds = measured.pop("whole")
            parts.append(measured)
        return seconds


# -- in the process of the job ----------------------------------------------------------------


def run_in_parts(out: Path, overrides: list[str]) -> None:
    """Trains with a clock around each part, then measures the floors; writes both."""
    spent: dict[str, float] = defaultdict(float)
    running: list[list[float]] = []  # for each function under way, the seconds of those inside it

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any, **keywords: Any) -> Any:
            begin = time.perf_counter()
            running.append([])
            try:
                return function(*arguments, **keywords)
            finally:
                seconds = time.perf_counter() - begin
                spent[part] += seconds - sum(running.pop())
                if running:
                    running[-1].append(seconds)

        return run

    import train  # its imports are a part

    spent["start Python, import"] = time.time() - float(os.environ["BEGUN"])
    kept: dict[str, Any] = {"steps": 0}
    score_policy = train.score_policy

    def count(*arguments: Any, **keywords: Any) -> Any:
        scores = score_policy(*arguments, **keywords)
        kept["steps"] += sum(sum(score.episode_lengths) for score in scores)
        return scores

    train.score_policy = count
    for part, functions in PARTS.items():
        for module, name in functions:
            owner: Any = sys.modules[module]
            *classes, name = name.split(".")
            for each in classes:
                owner = getattr(owner, each)
            setattr(owner, name, clocked(part, getattr(owner, name)))
    make_trainer = train.make_trainer

    def keep(*arguments: Any, **keywords: Any) -> Any:
        kept["trainer"] = make_trainer(*arguments, **keywords)
        return kept["trainer"]

    train.make_trainer = keep
    sys.argv = ["train.py", *overrides]
    train.start()
    whole = time.time() - float(os.environ["BEGUN"])
    spent["the rest"] = whole - sum(spent.values())
    result: dict[str, Any] = {name: {"seconds": seconds} for name, seconds in spent.items()}
    folder = Path(next(o for o in overrides if o.startswith("run_dir=")).removeprefix("run_dir="))
    result["updates"]["floor"] = products(kept["trainer"])
    dataset = json.loads((folder / "config.json").read_text())["dataset"]
    environment = dataset["environment_id"]
    result["make or read the data"]["floor"] = physics(environment, dataset["steps"])
    result["evaluations"]["floor"] = physics(environment, kept["steps"])
    out.write_text(json.dumps(result | {"whole": whole}))


def products(trainer: Any) -> float:
    """Seconds of all updates' matrix products: of each Linear one forwards, two backwards."""
    import torch

    steps = trainer.batches.config.batch_steps
    dtype = torch.bfloat16 if trainer.precision == "bfloat16" else torch.float32
    shapes = [p.shape for p in trainer.policy.parameters() if p.dim() == 2]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype)

    inputs = [(random(steps, i), random(o, i), random(steps, o)) for o, i in shapes]

    def once() -> None:
        for x, weight, gradient in inputs:
            x @ weight.T
            gradient @ weight
            gradient.T @ x

    for _ in range(10):
        once()
    rounds = 50
    begin = time.perf_counter()
    for _ in range(rounds):
        once()
    return (time.perf_counter() - begin) / rounds * trainer.steps


def physics(environment: str, steps: int) -> float:
    """Seconds of so many steps of the environment with ready actions, many side by side."""
    import numpy as np

    from envs.simulation.rollout import start_seeds
    from envs.simulation.simulators import Simulators

    count = 100
    everything = np.arange(count)
    simulators = Simulators(environment, count)
    simulators.reset(everything, start_seeds(0, everything))
    shape = (64, count, simulators.action_dim)
    actions = np.random.default_rng(0).uniform(-0.3, 0.3, shape).astype(np.float32)
    rounds = 200
    begin = time.perf_counter()
    for step in range(rounds):
        *_, terminated, truncated = simulators.step(everything, actions[step % 64])
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            simulators.reset(ended, start_seeds(step, ended))
    seconds = time.perf_counter() - begin
    simulators.close()
    return seconds * steps / (rounds * count)


if __name__ == "__main__":
    main()
