"""A sweep of tiny runs on a Ray cluster of this machine, whose workers are killed at random.

    python benchmarks/sweep.py --runs 2000 --seconds 10

Starts `python train.py -m 'seed=range(2000)' hydra/launcher=ray` in an empty folder. A process that
makes a run is killed (SIGKILL) after a random time, 10 seconds on average, and another, and so on;
the sweep then ends with runs that are not finished, and the same command is started again
(resume=true) until none is left. In the end each run must have its scores, and no scores may have
been written twice. Linux, extra: ray. Saves sweep.csv.
"""

import argparse
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from timing import ROOT, printed, write_csv

from common.errors import UserError, exits

TINY = [
    *("dataset=hopper-medium", "dataset.steps=1500", "steps=5", "protocol.batch_steps=128"),
    *("protocol.context_length=16", "backbone.d_model=16", "backbone.n_layer=1"),
    *("evaluation.episodes=1", "evaluation.every=0"),
]
Stamp = tuple[int, int]  # inode and time of a file: another after it was written again


def children(parent: int) -> Iterator[tuple[int, str]]:
    """Yields the number and the name of each process below another one."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # has ended
        below.setdefault(int(fields[1]), []).append(int(path.parent.name))
    waiting = [parent]
    while waiting:
        for number in below.get(waiting.pop(), []):
            waiting.append(number)
            try:
                yield number, Path(f"/proc/{number}/cmdline").read_text().rstrip("\0 ")
            except OSError:
                continue


def at_work(driver: int) -> list[int]:
    """Returns the processes in which Ray makes a run right now."""
    return [number for number, name in children(driver) if name.startswith("ray::_run")]


def peak(process: int) -> float:
    """Returns the most memory that a process has had, in MiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0.0


def scores(folder: Path) -> dict[str, Stamp]:
    """Returns the runs that have their scores."""
    found = {}
    for path in folder.glob("runs/*/*/scores.json"):
        about = path.stat()
        found[path.parent.name] = about.st_ino, about.st_mtime_ns
    return found


def main() -> None:
    """Runs the sweep to its end, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0, help="mean time between kills")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        raise UserError('Ray is not installed; `pip install -e ".[ray]"`.')
    chance = random.Random(given.seed)
    sweep = [f"seed=range({given.runs})", *TINY, "hydra/launcher=ray", "resume=true"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *sweep]
    first: dict[str, Stamp] = {}
    killed, starts, memory = 0, 0, 0.0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        variables = os.environ | {
            "MINARI_DATASETS_PATH": str(folder / "datasets"),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        while True:
            # The sweep, once: kills until it ends.
            before, starts = (len(first), killed), starts + 1
            with (folder / "output").open("w") as output:
                driver = subprocess.Popen(
                    command, cwd=folder, env=variables, stdout=output, stderr=subprocess.STDOUT
                )
                left = chance.expovariate(1 / given.seconds)  # seconds of work until a kill
                while driver.poll() is None:
                    time.sleep(0.5)
                    memory = max(memory, peak(driver.pid))
                    first = scores(folder) | first
                    if workers := at_work(driver.pid):
                        left -= 0.5
                    if workers and left <= 0:
                        os.kill(chance.choice(workers), signal.SIGKILL)
                        killed += 1
                        left = chance.expovariate(1 / given.seconds)
            first = scores(folder) | first
            done = f"{len(first)} of {given.runs} runs have scores, {killed} were killed"
            print(f"start {starts}: {done}", flush=True)
            if driver.returncode == 0:
                break
            if (len(first), killed) == before:
                raise UserError(f"no run was finished: {(folder / 'output').read_text()[-500:]}")
        last = scores(folder)
    row = {
        "runs": given.runs,
        "killed": killed,
        "starts of the sweep": starts,
        "without scores": given.runs - len(last),
        "scored twice": sum(stamp != first[name] for name, stamp in last.items()),
        "minutes": f"{(time.perf_counter() - begin) / 60:.1f}",
        "driver, MiB": f"{memory:.0f}",
        "cores": os.cpu_count(),
    }
    write_csv(given.out / "sweep.csv", printed([row]))


if __name__ == "__main__":
    with exits():
        main()
