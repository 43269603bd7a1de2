"""What each backbone costs in the same policy: to train, to run, to remember.

    python benchmarks/backbones.py --threads 1

For every backbone of the registry (3 layers, d 128, one token a step unless it says otherwise), and
a minGRU with expansion 2:

- one training update (forward, backward, clipping, AdamW) on 64 windows of 20 steps, on 20 pieces
  of 64 steps of streams, in which one step of 100 begins an episode, and on 2 rows of 1000 steps,
  each as a multiple of its own matrix products too (products.py), and the peak memory of the last
- one step of the rollout at batch 1 and 100, after 10 to 10,000 steps of history
- the bytes of the state that one environment carries from step to step

and Decision Transformer on the same steps: ours (its published settings, the window run again at
every step), that of transformers and that of d3rlpy, where they are installed. d3rlpy pins an older
gymnasium, so it needs an environment of its own: `pip install d3rlpy -e . --no-deps`, and there
`python benchmarks/backbones.py --only d3rlpy --append`. Saves backbones.csv.
`python benchmarks/backbones.py --picture` draws the steps of its table into step_time.png.
"""

import csv
import importlib.util
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from products import recorded
from timing import (
    Row,
    Work,
    acting_step,
    make_parser,
    medians,
    peak_mebibytes,
    printed,
    write_csv,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from agents.acting import make_actor
from agents.backbones import MIXERS, mixer_entry
from agents.backbones.attention import AttentionConfig
from agents.backbones.min_gru import MinGRUConfig
from agents.policy import PolicyConfig, ReturnConditionedPolicy

OBSERVATION_DIM, ACTION_DIM = 17, 6  # HalfCheetah's
WINDOWS, STREAMS, PACKED = (64, 20), (20, 64), (2, 1000)
HISTORIES = [10, 100, 1000, 10_000]
TRANSFORMER = "attention, Decision Transformer's settings"
WIDE = "min_gru, expansion 2"  # about as many parameters as GRU, LSTM and Mamba have
STREAMED = [*MIXERS, WIDE]
NAMES = [*STREAMED, TRANSFORMER, "transformers", "d3rlpy"]
# The lines of the picture, and their words in it.
LINES = {
    "min_gru": "minGRU, one compiled kernel",
    "gru": "GRU",
    "attention": "attention, keys and values cached",
    "mamba": "Mamba",
    "s4d": "S4D",
    TRANSFORMER: "Decision Transformer, window run again",
}


def make_policy(name: str) -> ReturnConditionedPolicy:
    """The policy around a backbone."""
    torch.manual_seed(0)
    config, backbone = PolicyConfig(), mixer_entry(name.partition(",")[0])[0]()
    if name == WIDE:
        backbone = MinGRUConfig(expansion=2)
    if name == TRANSFORMER:
        config = PolicyConfig(tokens=3, timestep_embedding=True, token_norm=True)
        backbone = AttentionConfig(context_length=60)
    return ReturnConditionedPolicy(
        config, backbone, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM
    )


def make_batch(shape: tuple[int, int]) -> dict[str, Any]:
    """Random steps (batch, time); each row is one episode or a window of it, or has several."""
    batch, length = shape
    resets = torch.arange(length).expand(batch, length) == 0
    if shape == STREAMS:
        resets = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.01
    return {
        "observations": torch.randn(batch, length, OBSERVATION_DIM),
        "actions": torch.rand(batch, length, ACTION_DIM) * 2 - 1,
        "returns_to_go": torch.rand(batch, length) * 1000,
        "timesteps": torch.arange(length).expand(batch, length),
        "resets": resets,
        "mask": torch.ones(batch, length, dtype=torch.bool),
    }


def make_update(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One update of a network's parameters."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return update


def update_of(name: str, shape: tuple[int, int]) -> Callable[[], None]:
    """One training update on steps of a shape."""
    batch = make_batch(shape)
    if name == "transformers":
        model, inputs = transformers_model(batch)
        return make_update(
            model, lambda: (model(**inputs).action_preds - batch["actions"]).square().mean()
        )
    if name == "d3rlpy":
        return d3rlpy_update(batch)
    policy = make_policy(name).train()
    return make_update(policy, lambda: policy.loss(**batch)[0])


def compiled_update(name: str) -> Callable[[], None]:
    """An update on rows of 1000 steps, after a short one that compiles."""
    update_of(name, (1, 4))()
    return update_of(name, PACKED)


def transformers_model(batch: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Transformers' Decision Transformer with the published settings, and a batch as its input."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    config = DecisionTransformerConfig(
        state_dim=OBSERVATION_DIM, act_dim=ACTION_DIM, hidden_size=128, n_layer=3, n_head=1,
        activation_function="relu", max_ep_len=10_001,
    )  # fmt: skip
    returns = batch["returns_to_go"].unsqueeze(-1)
    return DecisionTransformerModel(config), {
        "states": batch["observations"], "actions": batch["actions"], "rewards": returns,
        "returns_to_go": returns / 1000, "timesteps": batch["timesteps"],
        "attention_mask": batch["mask"].long(),
    }  # fmt: skip


def d3rlpy_update(batch: dict[str, Tensor]) -> Callable[[], None]:
    """d3rlpy's Decision Transformer with its defaults, which are the published settings."""
    import d3rlpy
    import numpy as np

    config = d3rlpy.algos.DecisionTransformerConfig(batch_size=64, context_size=WINDOWS[1])
    algorithm = config.create(device="cpu")
    algorithm.create_impl((OBSERVATION_DIM,), ACTION_DIM)
    arrays = {key: value.numpy().copy() for key, value in batch.items()}
    trajectories = [
        d3rlpy.dataset.PartialTrajectory(
            observations=arrays["observations"][i],
            actions=arrays["actions"][i],
            rewards=arrays["returns_to_go"][i][:, None],
            returns_to_go=arrays["returns_to_go"][i][:, None],
            terminals=np.zeros((WINDOWS[1], 1), np.float32),
            timesteps=arrays["timesteps"][i] + 1,
            masks=np.ones(WINDOWS[1], np.float32),
            length=WINDOWS[1],
        )
        for i in range(WINDOWS[0])
    ]
    minibatch = d3rlpy.dataset.TrajectoryMiniBatch.from_partial_trajectories(trajectories)
    return lambda: algorithm.update(minibatch)


def actor_of(name: str) -> Any:
    """The policy as it acts in a rollout; Decision Transformer runs its window again."""
    return make_actor(
        make_policy(name).eval(), "window" if name == TRANSFORMER else "carried", WINDOWS[1]
    )


def step_of(name: str, batch: int) -> Work:
    """One step of the rollout, the state carried on from call to call."""
    if name == "transformers":
        model, inputs = transformers_model(make_batch((batch, WINDOWS[1])))
        model.eval()
        return lambda: model(**inputs)  # the window that every step runs again
    return acting_step(actor_of(name), batch, OBSERVATION_DIM)


def measure(names: list[str], threads: int, rounds: int) -> list[Row]:
    """All figures, a row a backbone."""
    rows: dict[str, Row] = {n: {"backbone": n, "threads": threads} for n in names}
    for shape in (WINDOWS, STREAMS, PACKED):
        label = f"{shape[0]}x{shape[1]}"
        # Decision Transformer has no form for streams, and for long rows but quadratic attention.
        chosen = [n for n in names if shape == WINDOWS or n in STREAMED]
        if not chosen:
            continue
        works = {n: update_of(n, shape) for n in chosen}
        # One thread: what a kernel's own threads multiply is not seen.
        products = {f"{n}'s": recorded(work) for n, work in works.items() if threads == 1}
        times = medians(works | products, rounds)
        for name in chosen:
            rows[name][f"update {label} ms"] = round(1e3 * times[name], 2)
            if products:
                multiple = times[name] / times[f"{name}'s"]
                rows[name][f"update {label}, x its products"] = round(multiple, 2)
    acting = [n for n in names if n != "d3rlpy"]
    with torch.inference_mode():
        for batch, histories in ((1, HISTORIES), (100, HISTORIES[:2])):
            # All histories in the same rounds, or a machine that slows down would look like one.
            steps: dict[str, Work] = {}
            for history, name in product(histories, acting):
                step = steps[f"{name} {history}"] = step_of(name, batch)
                for _ in range(0 if name == "transformers" else history):
                    step()
            times = medians(steps, rounds, calls=10)
            for history, name in product(histories, acting):
                key = f"step, batch {batch}, after {history} us"
                rows[name][key] = round(1e6 * times[f"{name} {history}"], 1)
    for name in acting:
        if name != "transformers":
            parts = tree_leaves(actor_of(name).initial_state(1))
            rows[name]["state bytes"] = sum(x.nbytes for x in parts if isinstance(x, Tensor))
        if name in STREAMED:
            rows[name]["peak MiB 2x1000"] = peak_mebibytes(compiled_update, name)
    return list(rows.values())


def draw(table: Path, picture: Path) -> None:
    """Draws the time of a step against the steps before it, a line a backbone."""
    import matplotlib.pyplot as plt

    from reports.pictures import COLOURS, STYLE

    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["backbone"]: row for row in csv.DictReader(file)}
    with plt.rc_context(STYLE | {"font.size": 13}):
        figure, panel = plt.subplots(figsize=(7.2, 5), layout="constrained")
        for i, (name, words) in enumerate(LINES.items()):
            times = [float(rows[name][f"step, batch 1, after {n} us"]) for n in HISTORIES]
            colour, width = COLOURS[i], 4 if i == 0 else 2
            panel.plot(HISTORIES, times, marker="o", color=colour, lw=width)
            x, side = ((9000, "right"), (11, "left"))[i % 2 == 0]
            # Attention lies just below Mamba: its words stand below its line.
            y, end = (0.88, "top") if name == "attention" else (1.07, "bottom")
            panel.text(x, times[0] * y, words, color=colour, va=end, ha=side)
        panel.set(xscale="log", yscale="log", ylim=(50, 9000), xlabel="steps of the episode so far")
        panel.set_yticks([100, 1000], ["100 us", "1 ms"])
        panel.set_title("Time of one step of the policy, one environment, one core", fontsize=13)
        figure.savefig(picture, metadata={"Software": None})
    print(f"Drawn into {picture}")


def main() -> None:
    """Measures, prints and saves."""
    parser = make_parser(__doc__, rounds=15)
    parser.add_argument("--only", nargs="+", choices=NAMES)
    parser.add_argument("--append", action="store_true", help="keep the other rows of the table")
    parser.add_argument("--picture", action="store_true", help="draw the table, measure nothing")
    arguments = parser.parse_args()
    if arguments.picture:
        return draw(arguments.out / "backbones.csv", arguments.out / "step_time.png")
    torch.set_num_threads(arguments.threads)
    missing = {n for n in ("transformers", "d3rlpy") if importlib.util.find_spec(n) is None}
    names = [name for name in arguments.only or NAMES if name not in missing]
    rows = measure(names, arguments.threads, arguments.rounds)
    path = arguments.out / "backbones.csv"
    if arguments.append:
        with path.open(newline="", encoding="utf-8") as file:
            before = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
        rows = [row for row in before if row["backbone"] not in names] + rows
    write_csv(path, printed(rows))


if __name__ == "__main__":
    main()
