"""What the page in demo/ shares with the rest: Gymnasium's models and the policies that ship.

The page's own tests are in demo/test; the project's check runs them where Node.js is installed.
"""

import re
from pathlib import Path

import gymnasium.envs.mujoco
import pytest
from programs import ROOT

from agents.checkpoint import load_policy

DEMO = ROOT / "demo"
ASSETS = Path(gymnasium.envs.mujoco.__file__).parent / "assets"
ROBOTS = (DEMO / "src" / "robots.ts").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", re.findall(r'model: "(.*)"', ROBOTS))
def test_the_models_of_the_page_are_those_of_gymnasium(model):
    assert (DEMO / "public" / "robots" / model).read_bytes() == (ASSETS / model).read_bytes()


@pytest.mark.parametrize("name", re.findall(r'(?:policy|blindPolicy): "(.*)"', ROBOTS))
def test_the_policies_of_the_page_ship_and_act_where_it_says(name):
    policy, description, _ = load_policy(ROOT / "pretrained" / name)
    assert description.dataset["environment_id"] in re.findall(r'environment: "(.*)"', ROBOTS)
    assert bool(policy.config.hidden) == (name == "hopper-hidden")
