"""Tasks: what is known of their environments is what Gymnasium's have."""

import gymnasium as gym
import pytest

from common.errors import UserError
from envs.simulation.simulators import make_environment
from envs.tasks import TASKS, hidden_indices


@pytest.mark.parametrize("name", TASKS)
def test_velocities_are_those_of_the_environment(name):
    environment = make_environment(TASKS[name].environment_id)
    structure = environment.unwrapped.observation_structure
    first, count = structure["qpos"], structure["qvel"]
    assert list(TASKS[name].velocities) == list(range(first, first + count))
    # The values themselves; the tasks of three parts clip them to [-10, 10].
    observation, _ = environment.reset(seed=0)
    velocities = environment.unwrapped.data.qvel.clip(-10, 10)
    assert observation[TASKS[name].velocities] == pytest.approx(velocities)
    environment.close()


@pytest.mark.parametrize("name", TASKS)
def test_velocities_are_the_same_in_v4(name):
    version_4 = TASKS[name].environment_id.replace("v5", "v4")
    environment = make_environment(version_4)
    observation, _ = environment.reset(seed=0)
    velocities = environment.unwrapped.data.qvel.clip(-10, 10)
    assert observation[TASKS[name].velocities] == pytest.approx(velocities)
    assert hidden_indices("velocities", version_4) == list(TASKS[name].velocities)
    environment.close()


def test_ant_has_contact_forces_which_are_no_velocities():
    assert gym.make("Ant-v5").unwrapped.observation_structure["cfrc_ext"] == 78
    assert TASKS["ant"].velocities == range(13, 27)
    assert TASKS["ant"].target_return is None


def test_what_is_not_velocities_is_left_as_it_is_and_unknown_velocities_are_refused():
    assert hidden_indices(None, None) == [] and hidden_indices([3, 1], "Any-v0") == [3, 1]
    with pytest.raises(UserError, match=r"not known for Swimmer-v5; give their indices, such as"):
        hidden_indices("velocities", "Swimmer-v5")
    with pytest.raises(UserError, match="not known for data without an environment"):
        hidden_indices("velocities", None)
    shifted = {"exclude_current_positions_from_observation": False}
    with pytest.raises(UserError, match=r"not known for Hopper-v5 with exclude_current_pos"):
        hidden_indices("velocities", "Hopper-v5", shifted)
