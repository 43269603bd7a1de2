"""Runs an entry script: its command line composed by Hydra, checked, and started.

The code behind gets dataclasses, never a DictConfig. Hydra's own flags work as in any of its
programs: --cfg job, --info, --config-dir, --config-name, tab completion.
"""

from __future__ import annotations

import argparse
import inspect
import re
import signal
import sys
from pathlib import Path
from textwrap import fill

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from agents import distributed
from common.arguments import describe_keys
from common.errors import UserError, exits
from common.terminal import keep_standard_output
from configs.launch.overrides import FOLDER, check, composed, quoted
from configs.launch.sweep import Program, Stopped, run_sweep
from configs.launch.typed import KEY, BackboneModules
from configs.schema import register

__all__ = ["Program", "Stopped", "check", "run"]
FLAGS = """
Flags:
  -m                one run for each value: seed=0,1 or 'seed=range(3)' or 'dataset=glob(*-medium)'
  --cfg job         print the configuration instead of running
  --config-dir DIR  also look for DIR/experiment/NAME.yaml (and dataset/), then experiment=NAME
  --hydra-help      the other flags; tab completion: eval "$(python {script} -sc install=bash)"
"""


def run(name: str, program: Program) -> None:
    """Composes configs/{name}.yaml with the command line and starts the program with the result."""
    keep_standard_output()
    # Signals end a command as Ctrl-C does; not torchrun's processes, which may wait in C++.
    for signum in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        ignored = signal.getsignal(signum) == signal.SIG_IGN  # as nohup does
        if not ignored and not distributed.launched():
            signal.signal(signum, signal.default_int_handler)
    again = "; what was saved is kept: start again with resume=true" if name == "train" else ""
    with exits(f"interrupted{again}.", distributed.fails_first):
        try:
            _run(name, program)
        except Stopped as stop:
            print(stop)
        except (UserError, BrokenPipeError):
            raise
        except Exception:
            if distributed.fails_first():
                raise
            sys.exit(1)


def _run(name: str, program: Program) -> None:
    options = _options(sys.argv[1:])
    modules = BackboneModules.of(options.overrides)
    modules.load()
    register()
    name = options.config_name or name
    if options.config_dir is not None:
        _add_folder(Path(options.config_dir))
    if options.help:
        return print(_help(name, program, modules.others))
    if options.shell_completion or options.hydra_help:
        return _leave_to_hydra(name, sys.argv[1:])
    overrides = list(map(quoted, modules.others))
    runs = check(overrides, name)
    modules.check_used([config for _, config in runs])
    if options.cfg or options.info:
        return _leave_to_hydra(name, [*options.flags, *overrides])
    if options.multirun:
        if distributed.launched():
            raise UserError(
                "torchrun makes one run with several processes; start the runs of a sweep "
                "without it: python train.py -m ..."
            )
        sys.exit(run_sweep(name, program, runs, overrides, modules))
    if len(runs) > 1:
        raise UserError(f"{len(runs)} runs are asked for; start a sweep with -m.")
    [(run, config)] = runs
    if of_hydra := [text for text in overrides if re.match("hydra[./]", text)]:
        raise UserError(f"{of_hydra[0]} says how a sweep is started; add -m or leave it out.")
    program.main(config, run)


def _options(arguments: list[str]) -> argparse.Namespace:
    """Parses Hydra's flags; `flags` are they as they were given, `overrides` all the rest."""
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise UserError(f"{message}; --help lists the flags.")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    options, rest = parser.parse_known_args(arguments)
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        refuse(f"there is no flag {unknown[0]}")
    options.overrides += rest
    options.flags = [argument for argument in arguments if argument not in options.overrides]
    return options


def _add_folder(folder: Path) -> None:
    """Lets Hydra, and so the checks and every run of a sweep, look for files in a folder too."""
    if not folder.is_dir():
        raise UserError(f"--config-dir {folder} is no folder; give one with experiment/NAME.yaml.")
    place = f"file://{folder.resolve()}"

    class UserFolder(SearchPathPlugin):
        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            search_path.append("command-line", place)

    Plugins.instance().register(UserFolder)


def _leave_to_hydra(name: str, arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=name)(print)()


def _help(name: str, program: Program, overrides: list[str]) -> str:
    """Returns the page of --help: the program, its groups, every key with its value, the flags."""
    lines = [inspect.getdoc(inspect.getmodule(program.main)) or ""]
    with hydra.initialize_config_dir(str(FOLDER), version_base="1.3"):
        config = composed(overrides, name)
        options = GlobalHydra.instance().config_loader().get_group_options
        if "dataset" in config:
            lines += ["", "Groups, each chosen as group=option:"]
            for group in ("dataset", "backbone", "experiment"):
                text = f"  {group}: {', '.join(sorted(options(group)))}"
                lines.append(fill(text, 98, subsequent_indent=" " * 6))
            lines.append(f"  {KEY}=MODULE: a module of yours that registers another backbone")
    lines += ["", "Keys, with their values:", *describe_keys(config)]
    return "\n".join(lines) + "\n" + FLAGS.format(script=Path(sys.argv[0]).name)
