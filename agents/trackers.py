"""Experiment trackers: the records of a run for Weights & Biases or Trackio too; off by default.

    python train.py tracker=wandb        # WANDB_MODE=offline needs no network
    python train.py tracker=trackio      # on this machine; then: trackio show

Each is an extra of its name. The tracked run has the name of the run folder, where a file keeps its
id, so that a resumed run goes on in the same one.
"""

from __future__ import annotations

import json
import os
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from agents.checkpoint import MEND, TRACKED
from common.errors import UserError
from common.files import write_file

PROJECT = "decision-minrnn"


class _Wandb:
    """A run of wandb, with the step among the values.

    A resumed run records updates since the last save again, which wandb's own step would refuse.
    """

    def __init__(self, run: Any) -> None:
        self.run, self.finish = run, run.finish

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log({"step": step, **values})


def _start_wandb(folder: Path, config: Any, known: str | None) -> tuple[Any, str, str]:
    wandb = import_module("wandb")
    (folder / ".wandb").mkdir(
        exist_ok=True
    )  # hidden: what wandb puts there looks like a run folder
    # Not the console, where progress bars are; and one line of ours in place of its page.
    wandb.setup(wandb.Settings(silent=True, console="off"))
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=folder.parent.name,
        name=folder.name,
        id=known,
        resume="allow" if known else None,
        config=config,
        dir=folder,
    )
    run.define_metric("*", step_metric="step")
    shown = f"offline: wandb sync {Path(run.dir).parent}" if run.offline else run.url
    return _Wandb(run), run.id, shown


def _start_trackio(folder: Path, config: Any, known: str | None) -> tuple[Any, str, str]:
    trackio = import_module("trackio")
    # A run is resumed by its name alone, and only the folders above tell equal names apart.
    project = f"{PROJECT}-{folder.parent.name}"
    with redirect_stdout(StringIO()):
        run = trackio.init(
            project,
            name=folder.name,
            config=config,
            resume="allow" if known else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
    return run, folder.name, f"trackio show --project {project}"


_STARTS = {"wandb": _start_wandb, "trackio": _start_trackio}
TRACKERS = tuple(_STARTS)


class Tracker:
    """A run as one tracker sees it; what goes wrong there once training runs is only a warning.

    Args:
        name: One of TRACKERS.
        folder: The run folder.

    Raises:
        UserError: The tracker cannot be started: nobody is logged in, or there is no network.
    """

    def __init__(self, name: str, folder: Path, console: Console) -> None:
        self.name, self.console, self.works = name, console, True
        path, folder = folder / TRACKED, folder.resolve()
        try:
            known = json.loads(path.read_bytes()) if path.exists() else {}
            config: Any = {}
            if (folder / "config.yaml").exists():
                config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
            self.run, identity, shown = _STARTS[name](folder, config, known.get(name))
        except Exception as error:  # its errors share no base class
            raise UserError(
                f"tracker={name} cannot be started ({_reason(error)}); log in there, or set "
                "WANDB_MODE=offline for wandb, or leave tracker out."
            ) from error
        write_file(path, json.dumps(known | {name: identity}).encode(), MEND)
        console.print(f"tracked by {name}: {shown}", soft_wrap=True)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Passes one record on."""
        self._do(lambda: self.run.log(values, step))

    def finish(self) -> None:
        """Waits until everything is written or sent."""
        with redirect_stdout(StringIO()):
            self._do(self.run.finish)

    def _do(self, action: Any) -> None:
        if not self.works:
            return
        try:
            action()
        except Exception as error:
            self.works = False
            self.console.print(
                f"warning: {self.name} has failed ({_reason(error)}); the training goes on without "
                "it, and metrics.jsonl has every record.",
                soft_wrap=True,
            )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".: ")
