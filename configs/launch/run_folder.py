"""What tells a run from others: the name of its folder, and the text of its config.yaml."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from omegaconf import OmegaConf

from configs.schema import TrainConfig


def run_folder(config: TrainConfig, overrides: list[str]) -> Path:
    """Names a run after what tells it from others: runs/walker2d-medium/min_gru-streamed-seed0."""
    if config.run_dir:
        return Path(config.run_dir)
    given = {override.partition("=")[0]: override for override in overrides}  # the last of a key
    experiment = given.get("experiment", "").partition("=")[2]
    recipe = config.protocol.name if experiment in ("", "null") else experiment
    unnamed = {"dataset", "backbone", "experiment", "protocol.name", "seed", "device", "resume"}
    unnamed |= {"dataset.path", "dataset.name", "dataset.parts", "overwrite", "run_dir", "tracker"}
    # Only what needs no quoting in a shell or an override.
    others = [given[key] for key in sorted(given.keys() - unnamed)]
    rest = "".join("-" + re.sub(r"[^\w.]+", "-", other).strip("-") for other in others)
    if len(rest.encode()) > 100:
        rest = "-" + hashlib.sha256(rest.encode()).hexdigest()[:8]
    name = f"{config.backbone.name}-{recipe}-seed{config.seed}{rest}"
    return Path("runs", config.dataset.label, name)


def config_text(config: TrainConfig) -> str:
    """Returns config.yaml: every value of the run, but not how this start of it was asked for."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    unstored = {"resume", "overwrite", "tracker"}
    return OmegaConf.to_yaml({k: v for k, v in values.items() if k not in unstored})
