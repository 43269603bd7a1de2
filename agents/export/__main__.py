"""Writes a policy in a form that needs no PyTorch.

python -m agents.export run=runs/hopper-medium-expert/min_gru-streamed-seed0 to=policy.npz
python -m agents.export run=runs/hopper-medium-expert/min_gru-streamed-seed0 to=policy.onnx

.npz has the arrays of a minGRU or minLSTM policy; the one file min_rnn.py, which needs NumPy alone,
acts with them and is written beside it. .onnx is a step of any policy for ONNX Runtime and others.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.checkpoint import load_policy, scored_as
from agents.policy import ReturnConditionedPolicy
from agents.step.fused import obstacle
from common.arguments import parse_arguments, run_command
from common.errors import UserError
from common.files import write_files

PROGRAM = Path(__file__).with_name("min_rnn.py")
MEND = "free some space or give another place as to=PATH"


@dataclass
class ExportConfig:
    """Arguments of this command.

    Attributes:
        run: The run folder.
        to: The file to write: PATH.npz, with min_rnn.py beside it, or PATH.onnx (extra: onnx).
        without_critic: Exports a policy whose critic chose when it was scored, without the critic:
            it counts its target down, or holds it if it is told to.
    """

    run: str
    to: str
    without_critic: bool = False

    def __post_init__(self) -> None:
        if not self.to.endswith((".npz", ".onnx")):
            raise UserError(f"to is '{self.to}'; give a file that ends in .npz or .onnx.")


def arrays_of(
    policy: ReturnConditionedPolicy, rollout: str, context_length: int, held: bool = False
) -> dict[str, np.ndarray]:
    """Returns all that acting needs, as min_rnn.py reads it: weights by name, and settings.

    Raises:
        UserError: min_rnn.py cannot act with the policy, or not in this way.
    """
    if rollout not in ("carried", "rolling"):
        raise UserError(
            f"the policy was scored with rollout={rollout}, which min_rnn.py does not have; train "
            "one with rollout=carried or rollout=rolling."
        )
    if (reason := obstacle(policy)) is not None:
        raise UserError(f"the policy cannot be exported: {reason}")
    config, first = policy.config, policy.backbone.blocks[0]
    settings: dict[str, Any] = {
        "return_scale": np.float32(config.return_scale),
        "sees_returns": np.float32(config.return_to_go),
        "held": np.bool_(held),
        "sees_actions": np.float32(config.previous_action),
        "hidden": policy.hidden.numpy(),
        "epsilon": np.float32(policy.backbone.norm.eps),
        "layers": len(policy.backbone.blocks),
        "channels": first.mixer.channels,  # type: ignore[union-attr]
        "context_length": context_length if rollout == "rolling" else 0,
    }
    weights = {name: tensor.numpy() for name, tensor in policy.state_dict().items()}
    return weights | {name: np.asarray(value) for name, value in settings.items()}


def export(run: str | Path, to: str | Path, *, without_critic: bool = False) -> list[Path]:
    """Writes the policy of a run folder to an .npz file, and min_rnn.py beside it, or to .onnx.

    Args as of `ExportConfig`.

    Returns:
        The files.

    Raises:
        UserError: The run has no such policy, a file cannot be written or is in the way, or an
            extra is not installed.
    """
    run, to = Path(run), Path(to)
    policy, description, updates = load_policy(run)
    how = scored_as(run, description)
    if how.pop("chosen") and not without_critic:
        raise UserError(
            f"{run} was scored with a critic that chooses between actions, which an exported "
            "policy does not have; give without_critic=true to export the policy alone."
        )
    if to.suffix == ".onnx":
        from agents.export.onnx_form import onnx_of  # late: it needs an extra

        data = {name: description.dataset.get(name) for name in ("id", "sha256", "environment_id")}
        files = {to.name: onnx_of(policy, **how, updates=updates, dataset=data)}
    else:
        program, content = to.with_name(PROGRAM.name), PROGRAM.read_bytes()
        if program.exists() and program.read_bytes()[:60] != content[:60]:
            raise UserError(
                f"{program} is in the way and is none of ours; give another folder as to=."
            )
        buffer = io.BytesIO()
        arrays: dict[str, Any] = arrays_of(policy, **how)
        np.savez(buffer, **arrays)
        files = {to.name: buffer.getvalue(), program.name: content}
    write_files(to.parent, files, MEND)
    return [to.with_name(name) for name in files]


def main(arguments: list[str]) -> None:
    """Exports one run folder from the command line."""
    config = parse_arguments(ExportConfig, arguments)
    for path in export(config.run, config.to, without_critic=config.without_critic):
        print(f"Written: {path} ({path.stat().st_size:,} bytes)")


if __name__ == "__main__":
    run_command(main)
