"""What a run learns from and is measured by: its episodes, and the evaluation that it ends with."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from agents.policy import check_hidden
from configs.schema import TrainConfig, published_target, resolve_evaluation
from envs.data.combine import hold_out
from envs.data.episodes import Episodes
from envs.data.sources import load_episodes, named_environment, part_of
from envs.data.spaces import environment_spaces, fitting_spaces
from envs.tasks import DatasetInfo, Evaluation, hidden_indices

# Of the episodes, to measure a run by whose data name no environment.
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Data:
    """What a run learns from and is measured by."""

    episodes: Episodes
    held_out: Episodes | None
    info: DatasetInfo
    evaluation: Evaluation


def read_data(config: TrainConfig, console: Console, given: Episodes | None = None) -> Data:
    """Reads the data of a run; what their environment rules out is said before."""
    if (named := config.dataset.environment) is not None:
        environment_spaces(named)
    if config.policy.hidden or config.evaluation.asks_by_rule("published"):
        known = given.environment_id if given else named_environment(config.dataset)
        hidden = hidden_indices(config.policy.hidden, known)
        if config.evaluation.asks_by_rule("published"):
            published_target(known)
        if known is not None:
            check_hidden(hidden, environment_spaces(known)[0].shape[0])
    episodes = part_of(given, config.dataset) if given else load_episodes(config.dataset)
    held_out = None
    alone = episodes.environment_id is None
    if share := config.held_out or (HELD_OUT_SHARE if alone else 0):
        episodes, held_out = hold_out(episodes, share, config.seed)
    info = describe(episodes)
    evaluation = resolve_evaluation(config, info)
    if evaluation.environment_id is not None:
        dimensions = episodes.observations.shape[1], episodes.actions.shape[1]
        played_in = evaluation.environment_id, evaluation.environment_kwargs
        fitting_spaces(info.id, dimensions, *played_in)
    elif held_out is not None:
        console.print(
            f"note: {info.id} names no environment, so there is no rollout; held out, to measure "
            f"the error of the actions: {held_out.n_episodes:,} episodes, of "
            f"{episodes.n_episodes + held_out.n_episodes:,}.",
            soft_wrap=True,
        )
    if config.evaluation.asks_by_rule("auto") and evaluation.held:
        console.print(
            f"note: the best episodes of {info.id} are cut short by a fall, so the policy is asked "
            "for their best return at every step; evaluation.target=best counts it down.",
            soft_wrap=True,
        )
    if config.protocol.name == "windowed" and config.rollout == "carried" and not alone:
        console.print(
            f"note: trained on windows of {config.protocol.context_length} steps, the policy will "
            "carry its state further than that; rollout=rolling carries it as far as in training.",
            soft_wrap=True,
        )
    return Data(episodes, held_out, info, evaluation)


def describe(episodes: Episodes) -> DatasetInfo:
    """Returns what the run folder keeps of its data."""
    return DatasetInfo(
        id=episodes.dataset_id,
        environment_id=episodes.environment_id,
        environment_kwargs=episodes.environment_kwargs,
        reference=episodes.reference,
        episodes=episodes.n_episodes,
        steps=episodes.n_steps,
        return_mean=float(episodes.returns.mean()),
        return_top10=float(episodes.top_fraction_return(0.1)),
        return_max=float(episodes.returns.max()),
        sha256=episodes.sha256,
        cut_short=episodes.cut_short,
    )
