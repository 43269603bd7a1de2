"""The public API of `envs`: every name can be imported, and importing the package loads nothing."""

import subprocess
import sys

import pytest

import envs


def test_importing_envs_or_its_tasks_loads_no_library():
    code = (
        "import sys, envs, envs.tasks\n"
        "print({'numpy', 'torch', 'gymnasium', 'mujoco', 'minari'} & sys.modules.keys())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@pytest.mark.parametrize("name", envs.__all__)
def test_every_public_name_exists(name):
    assert getattr(envs, name) is not None


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'envs' has no attribute 'nothing'"):
        _ = envs.nothing
