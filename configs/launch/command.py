"""Runs an entry script under Hydra, with one sentence instead of a traceback for what is wrong.

Hydra composes and launches. The code behind gets dataclasses, never a DictConfig.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from agents import distributed
from common.errors import UserError
from configs.launch.overrides import (
    FOLDER,
    check,
    to_dataclass,
)
from configs.launch.sweep import Program, Stopped, run_sweep
from configs.schema import register

__all__ = ["Program", "Stopped", "UserError", "check", "run"]
SWEEP = {"-m", "--multirun"}


def run(name: str, program: Program) -> None:
    """Composes configs/{name}.yaml with the command line and starts the program with the result.

    Args:
        name: The configuration's name.
        program: What is started, once or for each run of a sweep.
    """
    register()
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    flags = set(sys.argv[1:]) - set(arguments)
    try:
        runs = check(arguments, name)
        if flags and flags <= SWEEP:
            if distributed.launched():
                raise UserError(
                    "torchrun makes one run with several processes; start the runs of a sweep "
                    "without it: python train.py -m ..."
                )
            # As Ctrl-C: what the launcher started ends with it.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            sys.exit(run_sweep(name, program, runs, arguments))
        if len(runs) > 1 and not flags:
            raise UserError(f"{len(runs)} runs are asked for; start a sweep with -m.")
    except UserError as error:
        _fail(error)

    @hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=name)
    def job(config: DictConfig) -> None:
        try:
            program.main(to_dataclass(config), list(HydraConfig.get().overrides.task))
        except Stopped as stop:
            print(stop)
        except UserError as error:
            _fail(error)
        except Exception:
            if distributed.fails_first():
                raise
            sys.exit(1)

    job()


def _fail(error: Exception) -> NoReturn:
    """Ends the program with an error's message on standard error and exit status 1."""
    if distributed.fails_first():
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
