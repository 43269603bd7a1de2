"""The public API of `agents`: every name is there, and the package itself imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

import agents


def test_importing_agents_imports_neither_torch_nor_numba():
    code = "import sys, agents; print(sorted({'torch', 'numba', 'numpy'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", agents.__all__)
def test_every_public_name_is_what_its_module_defines(name):
    found = getattr(agents, name)
    module = agents.import_module(f"agents.{agents._MODULES[name]}")
    assert found is getattr(module, name)


def test_an_unknown_name_is_an_attribute_error():
    assert set(agents._MODULES) == set(agents.__all__)
    with pytest.raises(AttributeError, match="'agents' has no attribute 'load_polcy'"):
        agents.load_polcy  # noqa: B018
