"""What an installation brings, read from the project's and the libraries' own declarations."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
BASE = [Requirement(line) for line in PROJECT["dependencies"]]
PINS = {
    canonicalize_name(requirement.name): requirement.specifier
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for requirement in [Requirement(line)]
}


def brought_in(requirements: list[Requirement]) -> set[str]:
    """The distributions that requirements name, and those that these require in turn, here."""
    found: set[str] = set()
    left = [(requirement.name, frozenset(requirement.extras)) for requirement in requirements]
    seen = set()
    while left:
        name, extras = left.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(canonicalize_name(name))
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if not marker or any(marker.evaluate({"extra": e}) for e in ("", *extras)):
                left.append((requirement.name, frozenset(requirement.extras)))
    return found


def test_a_plain_installation_can_download_from_minaris_remote():
    assert "huggingface-hub" in brought_in(BASE)
    extras = next(r.extras for r in BASE if r.name == "minari")
    assert "hf" in extras, "which names the version that Minari needs"


def test_a_users_torch_is_not_downgraded():
    torch = next(requirement for requirement in BASE if requirement.name == "torch")
    assert "99.0" in torch.specifier and "2.7" not in torch.specifier


def test_every_direct_dependency_of_the_tests_is_pinned_within_its_range():
    extras = PROJECT["optional-dependencies"]
    names = ["test", "arrow", "docs", "joblib", "onnx", "plots", "slurm", "video", "wandb"]
    names.append("behavior")
    lines = [line for name in names for line in extras[name] if "decision-minrnn" not in line]
    for requirement in [*BASE, *map(Requirement, lines)]:
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} is missing from constraints.txt"
        (version,) = (part.version for part in pin)
        assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_package_ships_its_types():
    for package in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        if package.endswith(".py"):  # a script
            continue
        assert (ROOT / package / "py.typed").is_file()


def test_the_newcomers_walk_leads_to_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    walk = re.findall(r"^\d+\. Where .*\? `(.+)`$", text, re.M)
    assert len(walk) == 13
    assert [path for path in walk if not (ROOT / path).is_file()] == []
