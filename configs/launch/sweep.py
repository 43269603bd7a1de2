"""Many runs of one command, through Hydra's launchers: what `-m` does.

    python train.py -m backbone=min_gru,min_lstm 'dataset=glob(*-medium)' 'seed=range(3)'
    python train.py -m seed=0,1,2,3 hydra/launcher=joblib hydra.launcher.n_jobs=2

A launcher only starts runs. This module checks all of them before the first one starts, keeps the
outcome of each, and lets no failed run end another one.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from common.errors import UserError
from configs.launch.overrides import FOLDER, parse, to_dataclass
from configs.launch.ray import RayLauncher
from configs.launch.typed import NO_MODULES, BackboneModules

ROOT = FOLDER.parent
_stopped = False  # whether a run of this process was stopped: it begins no other one


class Stopped(Exception):
    """A run that was asked to stop and saved what it had; its message says so."""


def _nothing(config: Any, overrides: list[str]) -> None:
    return None


@dataclass(frozen=True)
class Program:
    """What an entry script does. All its functions take the dataclass and the overrides of a run.

    Attributes:
        main: Makes the run.
        folder: Names the folder of the run, which no other run of a sweep may have.
        prepare: Called before any run of a sweep is started: returns one line if the run is
            finished, and raises UserError if the run cannot be made in its folder.
        result: Returns one line on a finished run; None if it is not finished.
    """

    main: Callable[[Any, list[str]], None]
    folder: Callable[[Any, list[str]], Path | None] = _nothing
    prepare: Callable[[Any, list[str]], str | None] = _nothing
    result: Callable[[Any, list[str]], str | None] = _nothing


def run_sweep(
    name: str,
    program: Program,
    runs: list[tuple[list[str], Any]],
    arguments: list[str],
    modules: BackboneModules = NO_MODULES,
) -> int:
    """Makes the runs of a sweep and prints which of them failed.

    Args:
        name: The configuration's name.
        program: What each run does.
        runs: The overrides and the dataclass of each.
        arguments: All overrides; those of Hydra's own keys choose the launcher.
        modules: Imported by each process that makes runs.

    Returns:
        The exit status: 0 if every run is finished, else 1.

    Raises:
        UserError: Two runs have one folder, or a folder cannot be used.
    """
    taken: dict[Path, list[str]] = {}
    for run, config in runs:
        folder = program.folder(config, run)
        if folder is not None and taken.setdefault(folder, run) is not run:
            raise UserError(
                f"two runs of the sweep have the run folder {folder}: {' '.join(taken[folder])}, "
                f"and {' '.join(run)}; leave out run_dir, or what does not tell runs apart."
            )
    finished = [program.prepare(config, run) for run, config in runs]
    for line in filter(None, finished):
        print(line)
    left = [pair for pair, line in zip(runs, finished, strict=True) if line is None]
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before.", flush=True)
    outcomes: list[str | None] = []
    try:
        if left:
            task = Task(program, modules, os.getcwd(), os.getpid())
            outcomes = _launch(name, [run for run, _ in left], task, arguments)
    except (KeyboardInterrupt, Exception) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"error: the launcher ended: {reason}", file=sys.stderr)
        # The launcher returned no outcomes, so they are read from the folders.
        outcomes = [None if program.result(config, run) else "unfinished" for run, config in left]
    failed = [(run, why) for (run, _), why in zip(left, outcomes, strict=True) if why]
    if not failed:
        print(f"All {len(runs)} runs are finished.")
        return 0
    print(f"{len(failed)} of {len(runs)} runs are not finished:", file=sys.stderr)
    for run, why in failed:
        print(f"  {' '.join(run)}: {why}", file=sys.stderr)
    return 1


@dataclass(frozen=True)
class Task:
    """One run, as a launcher calls it, in this process or in another one.

    Attributes:
        program: What it does.
        modules: What it imports first.
        folder: The working directory of the sweep, against which each process resolves paths.
        process: The process that started the sweep; any other one prints only the result of its
            run, because several of them may share a terminal.
    """

    program: Program
    modules: BackboneModules
    folder: str
    process: int

    def __call__(self, config: DictConfig) -> str | None:
        """Makes the run; returns why it is not finished, or None.

        Raises no error: with some launchers an error would end other runs.
        """
        global _stopped
        if _stopped:
            return "not started"
        away = os.getpid() != self.process
        try:
            os.chdir(self.folder)
            self.modules.load()
            run = list(HydraConfig.get().overrides.task)
            values = to_dataclass(config)
            with redirect_stdout(io.StringIO()) if away else nullcontext():
                self.program.main(values, run)
            if away:
                print(self.program.result(values, run) or f"done: {' '.join(run)}", flush=True)
            return None
        except Stopped as stop:
            _stopped = True
            return str(stop)
        except UserError as error:
            problem = str(error)
        except Exception as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        print(f"error: {problem}", file=sys.stderr, flush=True)
        return problem


def _launch(name: str, runs: list[list[str]], task: Task, arguments: list[str]) -> list[Any]:
    """Makes runs with the launcher that the arguments choose; returns what each returned."""
    # Processes that launchers start import the same code, whether it is installed or not.
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    paths.append(task.modules.folder or "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))
    with initialize_config_dir(str(FOLDER), job_name=name, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        of_hydra = [str(o.input_line) for o in parse(arguments) if o.is_hydra_override()]
        config = hydra.compose_config(name, of_hydra, run_mode=RunMode.MULTIRUN)
        context = HydraContext(hydra.config_loader, Callbacks(config))
        launcher: Launcher
        if config.hydra.launcher._target_ == RayLauncher.TARGET:
            # Hydra takes plugins from one package only.
            launcher = RayLauncher(OmegaConf.to_container(config.hydra.launcher.ray))
            launcher.setup(hydra_context=context, task_function=task, config=config)
        else:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=task, config=config
            )
        return [job.return_value for job in launcher.launch(runs, initial_job_idx=0)]
