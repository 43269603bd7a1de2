"""The published configurations say what was published, and build a policy that can act."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.acting import make_actor
from agents.policy import ReturnConditionedPolicy
from configs.launch.overrides import FOLDER, check, to_dataclass
from configs.schema import register

# Decision Transformer's settings (arXiv 2106.01345), which the others share.
RECIPE = {
    "policy.tokens": 3,
    "policy.timestep_embedding": True,
    "policy.token_norm": True,
    "policy.return_scale": 1000.0,
    "backbone.d_model": 128,
    "backbone.n_layer": 3,
    "backbone.dropout": 0.1,
    "protocol.name": "windowed",
    "protocol.context_length": 20,
    "protocol.batch_steps": 64 * 20,
    "trainer.learning_rate": 1e-4,
    "trainer.weight_decay": 1e-4,
    "trainer.warmup": 10_000,
    "trainer.schedule": "constant",
    "trainer.gradient_clip": 0.25,
    "trainer.ema_decay": 0.0,
    "steps": 100_000,
    "rollout": "window",
    "evaluation.target": "published",
    "evaluation.episodes": 100,
}
# What each has besides: its mixer, and where it departs.
PUBLISHED = {
    "decision_transformer": {
        "backbone.name": "attention",
        "backbone.n_head": 1,
        "backbone.context_length": 60,
    },
    "decision_mamba": {"backbone.name": "mamba", "backbone.d_model": 256},
    "daaren": {"backbone.name": "aaren"},
    "ds4": {
        "backbone.name": "s4d",
        "policy.tokens": 1,
        "policy.timestep_embedding": False,
        "policy.token_norm": False,
        "protocol.name": "whole_episodes",
        "protocol.batch_steps": 2048,
        "rollout": "carried",
    },
    "paper_min_gru": {
        "backbone.name": "min_gru",
        "backbone.d_model": 256,
        "backbone.gate_bias": 0.0,
    },
    "paper_min_lstm": {
        "backbone.name": "min_lstm",
        "backbone.d_model": 256,
        "backbone.forget_bias": 0.0,
    },
}


def composed(*overrides: str):
    register()
    check(list(overrides), "train")
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_an_experiment_has_the_published_values(experiment):
    config = composed(f"experiment={experiment}")
    for key, value in {**RECIPE, **PUBLISHED[experiment]}.items():
        assert OmegaConf.select(config, key) == value, key


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_an_experiment_builds_a_policy_that_acts(experiment):
    config = to_dataclass(composed(f"experiment={experiment}"))
    policy = ReturnConditionedPolicy(
        config.policy, config.backbone, observation_dim=11, action_dim=3
    ).eval()
    actor = make_actor(policy, config.rollout, config.protocol.context_length)
    with torch.inference_mode():
        state = actor.initial_state(2)
        for first in (True, False):
            action, state = actor.act(
                torch.randn(2, 11), torch.zeros(2), state, torch.tensor([first] * 2)
            )
    assert action.shape == (2, 3) and action.abs().max() <= 1


def test_the_recipe_takes_any_backbone_and_other_values():
    config = composed(
        "experiment=dt_recipe",
        "backbone=lstm",
        "dataset=walker2d-medium",
        "evaluation.target_return=5000",
        "trainer.learning_rate=1e-3",
    )
    assert (config.backbone.name, config.backbone.n_layer) == ("lstm", 3)
    assert config.evaluation.target_return == 5000 and config.trainer.learning_rate == 1e-3


def test_behaviour_cloning_is_the_default_but_for_what_it_says():
    default, cloning, best = (
        OmegaConf.to_container(composed(*overrides))
        for overrides in ([], ["experiment=bc"], ["experiment=bc_top10"])
    )
    assert default["policy"]["return_to_go"] and not cloning["policy"]["return_to_go"]
    assert default["protocol"]["best_share"] > 0 == cloning["protocol"]["best_share"]
    cloning["policy"]["return_to_go"] = True
    cloning["protocol"]["best_share"] = default["protocol"]["best_share"]
    cloning["backbone"]["dropout"] = default["backbone"]["dropout"]
    assert cloning == default
    assert best["dataset"]["top_fraction"] == 0.1 and not best["policy"]["return_to_go"]
