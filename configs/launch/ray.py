"""A Hydra launcher for Ray: `hydra/launcher=ray`, on this machine or on a cluster.

    hydra.launcher.ray.init.address=auto    joins a cluster; without it, Ray starts one here
    hydra.launcher.ray.remote.num_cpus=4    cores, and so threads, of each run (1)
    hydra.launcher.ray.remote.num_gpus=1    GPUs of each run

The machines of a cluster need this project and a shared folder for the runs. The keys are those of
hydra-ray-launcher, whose old cloudpickle and cloud clients do not go with today's joblib.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class RayLauncher(Launcher):
    """Makes each run a task of Ray.

    Args:
        ray: `init`, the arguments of ray.init, and `remote`, the options of each task.
    """

    TARGET = "configs.launch.ray.RayLauncher"

    def __init__(self, ray: Any) -> None:
        self.ray = ray

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keeps what every run needs."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Makes all runs, as many at once as there are cores for.

        Returns:
            The outcome of each, in their order; a run whose process died has failed.
        """
        import ray

        ray.init(**self.ray["init"])
        # Ray does not restart a process that died: the user does, with resume=true.
        remote = ray.remote(_run).options(max_retries=0, **self.ray["remote"])
        shared = ray.put((self.context, self.task, self.config, Singleton.get_state()))
        numbered = enumerate(job_overrides, initial_job_idx)
        jobs = [remote.remote(shared, list(overrides), number) for number, overrides in numbered]
        try:
            return [_result(ray, job) for job in jobs]
        finally:
            ray.shutdown()


def _run(shared: Any, overrides: list[str], number: int) -> JobReturn:
    context, task, config, singletons = shared
    setup_globals()
    Singleton.set_state(singletons)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
    return run_job(task, job, "hydra.sweep.dir", "hydra.sweep.subdir", context)


def _result(ray: Any, job: Any) -> JobReturn:
    try:
        return ray.get(job)
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        return JobReturn(status=JobStatus.COMPLETED, _return_value=f"its process died: {reason}")


@dataclass
class RayKeys:
    """The keys below hydra.launcher.ray."""

    init: dict[str, Any] = field(default_factory=lambda: {"address": None})
    remote: dict[str, Any] = field(default_factory=lambda: {"num_cpus": 1})


@dataclass
class RayLauncherConfig:
    """The choice hydra/launcher=ray."""

    _target_: str = RayLauncher.TARGET
    ray: RayKeys = field(default_factory=RayKeys)
