"""The arrows of the house: which room may import which, and nothing else.

An import counts wherever it stands, inside a function too. A new file of `agents` or `envs` needs
its place in the table.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from run_folders import make_run

ROOT = Path(__file__).parents[1]
DATA = ["envs.data", "envs.data.episodes", "envs.data.mapped"]

# Room -> the rooms that it may import besides itself and `common`; "agents.*" is all of agents.
# `agents` and `envs` are their `__init__.py` alone, the public API; the other rooms hold all below.
ARROWS = {
    "common": [],
    "agents": ["agents.*"],
    "agents.scan": [],
    "agents.backbones": ["agents.scan"],
    "agents.policy": ["agents.backbones"],
    "agents.critic": [],
    "agents.checksum": [],
    "agents.critic.file": ["agents.checksum", "agents.critic"],
    "agents.step": ["agents.policy", "agents.backbones", "agents.scan"],
    "agents.critic.choosing": ["agents.policy"],
    "agents.acting": ["agents.step", "agents.critic.choosing", "agents.policy", "agents.backbones"],
    "agents.actor": [
        "agents.acting", "agents.checkpoint", "agents.critic.file", "agents.hub",
        "agents.policy",
    ],
    "agents.hub": ["agents.checkpoint", "agents.critic.file"],
    "agents.export": [
        "agents.acting", "agents.step", "agents.checkpoint", "agents.policy", "agents.backbones",
    ],
    "agents.checkpoint": [
        "agents.checksum", "agents.critic.file", "agents.policy", "agents.backbones",
    ],
    "agents.distributed": ["agents.policy", "agents.backbones"],
    "agents.gradients": ["agents.policy", "agents.backbones", "agents.scan"],
    "agents.trackers": ["agents.checkpoint"],
    "agents.metrics": ["agents.checkpoint", "agents.trackers"],
    "agents.prediction": ["agents.policy", "agents.trainer"],
    "agents.trainer": [
        "agents.checkpoint", "agents.distributed", "agents.metrics", "agents.policy",
        "agents.backbones", "agents.trackers", "agents.gradients",
    ],
    "envs": ["envs.*"],
    "envs.tasks": [],
    "envs.simulation": ["envs.tasks"],
    "envs.behaviors": ["envs.tasks", "envs.simulation", *DATA],
    "envs.data.mapped": [],
    "envs.data.episodes": ["envs.tasks", "envs.data.mapped"],
    "envs.data": ["envs.tasks", "envs.simulation", *DATA],
    "envs.data.sources": [
        "envs.tasks", "envs.simulation", "envs.behaviors", *DATA,
    ],
    "envs.data.inspect": ["envs.tasks", "envs.data.sources", *DATA],
    "reports": ["envs.tasks"],
    "configs": ["agents.*", "envs.*"],
}  # fmt: skip
PUBLIC = ("agents", "envs")
ENTRY_SCRIPTS = {"train", "eval", "compare", "benchmarks", "tests"}
# Libraries that a part of the house must not import, wherever it stands.
FORBIDDEN = {
    "common": {"torch", "gymnasium", "mujoco", "minari", "h5py", "hydra"},
    "agents": {"gymnasium", "mujoco", "minari", "h5py", "hydra"},
    "reports": {"torch", "gymnasium", "mujoco", "minari", "h5py", "hydra"},
}
PARTS = {room.partition(".")[0] for room in ARROWS}


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages, by name."""
    found = {}
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """The modules that a file imports, by their full names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & modules().keys()) or {node.module}
    return names


def room(module: str) -> str:
    """The most specific room that holds a module."""
    if module in PUBLIC:
        return module
    holding = [r for r in ARROWS if r not in PUBLIC and f"{module}.".startswith(f"{r}.")]
    assert holding, f"{module} has no place in the table of arrows"
    return max(holding, key=len)


def allowed(source: str, target: str) -> bool:
    arrows = {source, "common", *ARROWS[source]}
    return target in arrows or f"{target.partition('.')[0]}.*" in arrows


@pytest.mark.parametrize("source", ARROWS)
def test_a_room_imports_only_the_rooms_that_its_arrows_reach(source):
    inside = {module: path for module, path in modules().items() if room(module) == source}
    assert inside, f"the room {source} is empty"
    for module, path in inside.items():
        for name in sorted(imported(path)):
            top = name.partition(".")[0]
            assert top not in ENTRY_SCRIPTS, f"{module} imports {name}"
            assert top not in FORBIDDEN.get(source.partition(".")[0], ()), f"{module}: {name}"
            if top in PARTS:
                assert allowed(source, room(name)), f"{module} imports {name}"


def test_the_rooms_form_floors():
    """No room reaches itself along the arrows, so that each can be read before those above it."""
    floors: dict[str, int] = {}
    left = {r: {a for a in ARROWS[r] if "*" not in a and a != r} for r in ARROWS}
    while left:
        ready = [r for r, below in left.items() if below <= floors.keys()]
        assert ready, f"these rooms import each other in a circle: {sorted(left)}"
        for r in ready:
            floors[r] = max((floors[below] + 1 for below in left.pop(r)), default=0)


def test_reports_start_without_torch_and_without_a_simulator(tmp_path):
    make_run(tmp_path / "a", curve=(10, 20))
    make_run(tmp_path / "b", "walker2d-medium")
    program = f"""
import runpy, sys
for name in {sorted(FORBIDDEN["reports"] | {"agents", "configs"})}:
    sys.modules[name] = None
sys.argv = ["compare.py", {str(tmp_path)!r}, "--published", "--table", {str(tmp_path / "table")!r}]
runpy.run_path({str(ROOT / "compare.py")!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "comparison" / "score_per_task.png").is_file()
