"""Many runs of one command, through Hydra's launchers: what `-m` does.

    python train.py -m backbone=min_gru,min_lstm 'dataset=glob(*-medium)' 'seed=range(3)'
    python train.py -m seed=0,1,2,3 hydra/launcher=joblib hydra.launcher.n_jobs=2

Launchers only start runs. Which ones, and what became of them, is known here, so that all are
checked before the first one starts, and none ends another one.
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
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from common.errors import UserError
from configs.launch.overrides import (
    FOLDER,
    is_of_hydra,
    parse,
    to_dataclass,
)
from configs.launch.ray import RayLauncher

ROOT = FOLDER.parent


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
        prepare: Looks at it before any run of a sweep is started: returns one line if nothing is
            left to do, and raises UserError if the run cannot be made in its folder.
        result: Returns one line on a finished run; None if it is not finished.
    """

    main: Callable[[Any, list[str]], None]
    folder: Callable[[Any, list[str]], Path | None] = _nothing
    prepare: Callable[[Any, list[str]], str | None] = _nothing
    result: Callable[[Any, list[str]], str | None] = _nothing


def run_sweep(
    name: str, program: Program, runs: list[tuple[list[str], Any]], arguments: list[str]
) -> int:
    """Makes the runs of a sweep and says which of them failed.

    Args:
        name: The configuration's name.
        program: What each run does.
        runs: The overrides and the dataclass of each.
        arguments: Overrides as they were given; those of Hydra's own keys choose the launcher.

    Returns:
        The exit status: 0 if every run is finished, else 1.

    Raises:
        UserError: Two runs have one folder, or the launcher has no such key.
    """
    _check_folders([(program.folder(config, run), run) for run, config in runs])
    left = []
    for run, config in runs:
        line = program.prepare(config, run)
        if line is None:
            left.append((run, config))
        else:
            print(line)
    print(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before.", flush=True)
    outcomes: list[str | None] = []
    try:
        if left:
            task = Task(program, os.getcwd(), os.getpid())
            outcomes = launch(name, [run for run, _ in left], task, arguments)
    except UserError:
        raise
    except (KeyboardInterrupt, Exception) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"error: the launcher ended: {reason}", file=sys.stderr)
        # So the folders must tell what became of the runs.
        outcomes = [None if program.result(config, run) else "unfinished" for run, config in left]
    failed = [(run, why) for (run, _), why in zip(left, outcomes, strict=True) if why]
    if failed:
        print(f"{len(failed)} of {len(runs)} runs are not finished:", file=sys.stderr)
        for run, why in failed:
            print(f"  {' '.join(run)}: {why}", file=sys.stderr)
        return 1
    print(f"All {len(runs)} runs are finished.")
    return 0


def _check_folders(runs: list[tuple[Path | None, list[str]]]) -> None:
    taken: dict[Path, list[str]] = {}
    for folder, run in runs:
        if folder is not None and folder in taken:
            raise UserError(
                f"two runs of the sweep have the run folder {folder}: {' '.join(taken[folder])}, "
                f"and {' '.join(run)}; leave out run_dir, or what does not tell runs apart."
            )
        if folder is not None:
            taken[folder] = run


@dataclass(frozen=True)
class Task:
    """One run, as a launcher calls it, in this process or in another one.

    Attributes:
        program: What it does.
        folder: Where the sweep was started: relative paths mean the same in every process.
        process: The process that started it; in others, of which several may share a terminal,
            only the result is printed.
    """

    program: Program
    folder: str
    process: int

    def __call__(self, config: DictConfig) -> str | None:
        """Makes the run; returns why it is not finished, or None.

        Raises no error, for with some launchers that would end other runs.
        """
        global _stopped
        if _stopped:
            return "not started"
        away = os.getpid() != self.process
        try:
            os.chdir(self.folder)
            run = list(HydraConfig.get().overrides.task)
            values = to_dataclass(config)
            with redirect_stdout(io.StringIO()) if away else nullcontext():
                self.program.main(values, run)
            if away:
                print(self.program.result(values, run) or f"done: {' '.join(run)}", flush=True)
            return None
        except Stopped as stop:
            _stopped = True  # nor does this process begin another run
            return str(stop)
        except UserError as error:
            problem = str(error)
        except Exception as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        print(f"error: {problem}", file=sys.stderr, flush=True)
        return problem


_stopped = False


def launch(name: str, runs: list[list[str]], task: Task, arguments: list[str]) -> list[Any]:
    """Makes runs with the launcher that was asked for.

    Args:
        name: The configuration's name.
        runs: The overrides of each.
        task: Makes one.
        arguments: As hydra/launcher=joblib, hydra.launcher.n_jobs=2; those of no key of Hydra's
            are not looked at.

    Returns:
        What the task returned for each run.

    Raises:
        UserError: The launcher has no such key.
    """
    # Processes that launchers start import the same code, whether it is installed or not.
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, dict.fromkeys(paths)))
    with initialize_config_dir(str(FOLDER), job_name=name, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        about = [str(o.input_line) for o in parse(arguments) if is_of_hydra(o)]
        try:
            config = hydra.compose_config(name, about, run_mode=RunMode.MULTIRUN)
        except HydraException as error:
            reason = " ".join(str(error.__cause__ or error).splitlines()[:1]).rstrip(".")
            raise UserError(f"{' '.join(about)} cannot be used: {reason}.") from error
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
