"""The training loop: optimiser, schedule, precision, logging, saving, resuming.

On one CPU with a fixed number of threads, equal runs end with equal bits, and so does a run that
was killed and resumed: training_state.pt holds every random state, the sampler's position, the
detached state of truncated BPTT and the losses since the last record.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from agents.backbones.mixer import parameter_groups
from agents.backbones.state import map_state
from agents.checkpoint import (
    STATE,
    damage_explained,
    load_training_state,
    save_policy,
    save_training_state,
)
from agents.distributed import Ranks
from agents.gradients import backward, can_share
from agents.metrics import Metrics
from agents.policy import Q, ReturnConditionedPolicy, TrainingState
from agents.trackers import Tracker
from common.checks import MOST_STEPS, check_fields, choice, number
from common.errors import UserError

SCHEDULES = ("cosine", "constant")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Batches(Protocol):
    """What the trainer needs of a sampler; see envs.data.batches."""

    continues: bool
    own_rows: slice

    def next(self) -> dict[str, Tensor]:
        """Returns the next batch, the keyword arguments of `ReturnConditionedPolicy.loss`."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the sampler."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a position."""


@dataclass
class TrainerConfig:
    """How the policy is trained.

    Attributes:
        learning_rate: Highest learning rate of AdamW.
        weight_decay: Weight decay of AdamW; `parameter_groups` says what is exempt.
        warmup: Updates over which the learning rate rises from zero.
        schedule: `cosine` falls to zero at the last update, `constant` stays.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        ema_decay: Decay of the EMA weights, which are evaluated and saved for acting.
        log_every: Updates between two records of the training loss.
        save_every: Updates between two checkpoints.
    """

    learning_rate: float = number(1e-3, above=0, at_most=1e30)
    weight_decay: float = number(1e-4, at_least=0, at_most=1e30)
    warmup: int = number(100, at_least=0, at_most=MOST_STEPS)
    schedule: str = choice("cosine", SCHEDULES)
    gradient_clip: float = number(1.0, at_least=0, at_most=1e30)
    ema_decay: float = number(0.99, at_least=0, below=1)
    log_every: int = number(50, at_least=1, at_most=MOST_STEPS)
    save_every: int = number(500, at_least=1, at_most=MOST_STEPS)

    def __post_init__(self) -> None:
        check_fields(self, "trainer")

    def rate_factor(self, step: int, steps: int) -> float:
        """Returns the learning rate of update `step` (from 0), relative to its highest."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        if self.schedule == "constant":
            return rise
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps))))


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into an event, so that the loop can save and end cleanly."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    hang_up = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, hang_up)}
    for signum, handler in before.items():
        if signum != hang_up or handler != signal.SIG_IGN:  # nohup ignores hang-ups
            signal.signal(signum, lambda *_: event.set())
    try:
        yield event
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Trainer:
    """Trains a policy on endless batches, saving into a run folder.

    Args:
        policy: The policy, on the same device as the batches.
        batches: A sampler of envs.data.batches; this rank's share of each batch.
        steps: Updates in the whole run.
        precision: A key of PRECISIONS; all but float32 is automatic mixed precision.
        evaluate: Called every `evaluate_every` updates (0: never) with the EMA policy and the
            number of updates; returns the scalars to record.
        tracker: A name of agents.trackers: who gets the records too.
        ranks: The processes that share the batches; each has a trainer.
        q: That of the policy's loss; the batches then have its weights.
    """

    def __init__(
        self,
        policy: ReturnConditionedPolicy,
        batches: Batches,
        config: TrainerConfig,
        *,
        steps: int,
        folder: Path,
        precision: str = "float32",
        evaluate: Callable[[ReturnConditionedPolicy, int], dict[str, float]] | None = None,
        evaluate_every: int = 0,
        tracker: str | None = None,
        console: Console | None = None,
        ranks: Ranks | None = None,
        q: Q | None = None,
    ) -> None:
        self.policy = policy
        self.batches = batches
        self.config = config
        self.steps = steps
        self.folder = folder
        self.precision = precision
        self.evaluate = evaluate
        self.evaluate_every = evaluate_every
        self.tracker = tracker
        self.console = console or Console()
        self.ranks = ranks or Ranks()
        self.q = q
        self.step = 0
        self.losses: list[Tensor] = []  # of the updates since the last record
        self.carried: TrainingState | None = None
        self.optimizer = torch.optim.AdamW(
            parameter_groups(policy),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        # A decay of 0 copies the weights.
        self.average = AveragedModel(policy, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.acting_policy = cast(ReturnConditionedPolicy, self.average.module)
        self.saved: dict[str, Any] = {
            "policy": policy,
            "average": self.average,
            "optimizer": self.optimizer,
            "batches": batches,
        }
        self.loss = self.ranks.loss_of(policy)
        on_cpu = policy.target_return.device.type == "cpu"
        self.shares = on_cpu and self.ranks.count == 1 and can_share(policy)

    # -- saving and resuming ------------------------------------------------------------------

    def save(self) -> None:
        """Saves training_state.pt and model.safetensors on the first rank; all must call it.

        A kill between the two costs nothing: `resume` writes the second from the first.
        """
        carried = self.ranks.gather(self.carried)
        losses = self.ranks.gather(torch.stack(self.losses)[None] if self.losses else None)
        if not self.ranks.leads:
            return
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.saved.items()}
        state |= {
            "step": self.step,
            "carried": None if carried is None else tuple(carried),
            "losses": losses,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }
        save_training_state(self.folder, state)
        save_policy(self.folder, self.acting_policy, self.step)

    def resume(self) -> None:
        """Resumes the run from its last save, or from its beginning if there is none."""
        state = self.ranks.from_first(lambda: load_training_state(self.folder))
        if state is None:
            return
        with damage_explained(self.folder):
            self._restore(state)
        if self.ranks.leads:
            save_policy(self.folder, self.acting_policy, self.step)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if not 0 <= self.step <= self.steps:
            raise ValueError(f"update {self.step} of {self.steps}")
        for name, part in self.saved.items():
            part.load_state_dict(state[name])
        device = self.policy.target_return.device
        if state["carried"] is not None:
            rows = self.batches.own_rows
            carried = map_state(lambda tensor: tensor[rows].to(device), state["carried"])
            self.carried = TrainingState(*carried)
        if (losses := state["losses"]) is not None:
            # A row for each rank; the same sum if their number has changed.
            same = len(losses) == self.ranks.count
            self.losses = list((losses[self.ranks.rank] if same else losses.mean(0)).to(device))
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"][: torch.cuda.device_count()])

    # -- the loop -----------------------------------------------------------------------------

    def update(self) -> tuple[Tensor, Tensor, int]:
        """Makes one update; returns its loss, its gradient's norm and the steps it saw."""
        self.policy.train()
        self.ranks.draw_dropout(self.step)
        batch = self.batches.next()
        # The loss and its gradient.
        dtype = PRECISIONS[self.precision]
        if self.shares:
            loss, carried = backward(self.policy, batch, self.carried, dtype, self.q)
        else:
            mixed = dtype != torch.float32
            with torch.autocast(batch["mask"].device.type, dtype, enabled=mixed):
                loss, carried = self.loss(**batch, state=self.carried, q=self.q)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        limit = self.config.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        if not torch.isfinite(norm):  # the weights are still those of the last good update
            saved = (self.folder / STATE).exists()
            kept = f"; the last checkpoint in {self.folder} is from before" if saved else ""
            raise UserError(
                f"the loss or its gradient is not finite at update {self.step + 1} (loss "
                f"{loss.item()}){kept}: lower trainer.learning_rate or look for extreme values in "
                "the data."
            )
        # The step.
        factor = self.config.rate_factor(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor
        self.optimizer.step()
        self.average.update_parameters(self.policy)
        if self.batches.continues:
            self.carried = carried
        self.step += 1
        return loss.detach(), norm, int(batch["mask"].sum())

    def run(self) -> bool:
        """Trains to the last update, or until Ctrl-C or SIGTERM asks to stop.

        Returns:
            Whether the run is finished.

        Raises:
            UserError: The loss is not finite, or the run folder cannot be written.
        """
        tracker = metrics = None
        if self.ranks.leads:
            if self.tracker is not None:
                tracker = Tracker(self.tracker, self.folder, self.console)
            metrics = Metrics(self.folder, resume_step=self.step, tracker=tracker)
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} steps/s"),
            TimeRemainingColumn(),
        )
        with (
            closing(metrics) if metrics else nullcontext(),
            stop_requests() as stop,
            Progress(*columns, console=self.console, transient=True) as progress,
        ):
            task = progress.add_task("", total=self.steps, loss="-", speed="-")
            progress.update(task, completed=self.step)
            self._loop(metrics, stop, lambda **fields: progress.update(task, **fields))
        return self.step == self.steps

    def _loop(self, metrics: Metrics | None, stop: threading.Event, show: Callable) -> None:
        began, seen, since = time.perf_counter(), 0, self.step
        began += self._evaluate(metrics)  # of the last save, if a kill has cost it
        while self.step < self.steps and not self.ranks.sum(stop.is_set()):
            loss, norm, steps = self.update()
            self.losses.append(loss)
            seen += steps
            # Record the loss: a mean over updates that a resumed run has seen only in part.
            if self.step % self.config.log_every == 0 or self.step == self.steps:
                seconds = time.perf_counter() - began
                mean = self.ranks.sum(torch.stack(self.losses).mean().item()) / self.ranks.count
                speed = self.ranks.sum(seen) / seconds
                values = {
                    "train/loss": mean,
                    "train/gradient_norm": norm.item(),
                    "train/learning_rate": self.optimizer.param_groups[0]["lr"],
                    "time/updates_per_second": (self.step - since) / seconds,
                    "time/steps_per_second": speed,
                }
                if metrics:
                    metrics.record(self.step, values)
                show(completed=self.step, loss=f"{mean:.4f}", speed=f"{speed:,.0f}")
                self.losses.clear()
                began, seen, since = time.perf_counter(), 0, self.step
            # Save before the evaluation, which may fail.
            if self.step % self.config.save_every == 0 or self.step == self.steps:
                self.save()
            began += self._evaluate(metrics)
        if self.step < self.steps:
            self.save()

    def _evaluate(self, metrics: Metrics | None) -> float:
        """Evaluates and records, if it is time and not done yet; returns the seconds it took.

        Only the first rank has metrics; the others wait for it before their next update.
        """
        due = self.evaluate_every and self.step > 0 and self.step % self.evaluate_every == 0
        if not (metrics and self.evaluate and due) or self.step in metrics.evaluated:
            return 0.0
        start = time.perf_counter()
        scores = self.evaluate(self.acting_policy.eval(), self.step)
        seconds = time.perf_counter() - start
        metrics.record(self.step, {**scores, "time/evaluation": seconds})
        return seconds
