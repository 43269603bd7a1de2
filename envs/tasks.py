"""The locomotion tasks: environment ids, reference scores with their source, target returns.

A task is what a data set and a rollout share. The reference pair turns a return into a
normalised score, ``100 * (return - minimum) / (maximum - minimum)``.
"""

from dataclasses import dataclass

# D4RL (Fu et al., arXiv 2004.07219), d4rl/infos.py: a random policy's and a SAC expert's mean
# return, measured in the v2 environments. v5 no longer pays the healthy reward on the step that
# falls (Hopper, Walker2d) and changed Walker2d's foot friction, so a score in v5 is comparable
# with D4RL's tables only approximately.
D4RL_REFERENCE_SOURCE = "D4RL (arXiv 2004.07219), measured in the v2 environments"


@dataclass(frozen=True)
class Task:
    """One locomotion task.

    Attributes:
        name: Short name, as in data set ids: ``hopper``.
        environment_id: Gymnasium id of the environment that this project simulates.
        horizon: Steps after which the environment truncates an episode.
        reference_min: Return of a random policy, which scores 0.
        reference_max: Return of an expert, which scores 100.
        reference_source: Where the reference pair comes from.
        target_return: Decision Transformer's first target (arXiv 2106.01345, table 8).
    """

    name: str
    environment_id: str
    horizon: int
    reference_min: float
    reference_max: float
    reference_source: str
    target_return: float


TASKS = {
    task.name: task
    for task in (
        Task("hopper", "Hopper-v5", 1000, -20.272305, 3234.3, D4RL_REFERENCE_SOURCE, 3600.0),
        Task(
            "halfcheetah",
            "HalfCheetah-v5",
            1000,
            -280.178953,
            12135.0,
            D4RL_REFERENCE_SOURCE,
            12000.0,
        ),
        Task("walker2d", "Walker2d-v5", 1000, 1.629008, 4592.3, D4RL_REFERENCE_SOURCE, 5000.0),
    )
}


def task_of_environment(environment_id: str) -> Task | None:
    """Returns the task whose environment this is, any version; None for an unknown one.

    >>> task_of_environment("Hopper-v4").name
    'hopper'
    """
    stem = environment_id.rsplit("-v", 1)[0].lower()
    return TASKS.get(stem)
