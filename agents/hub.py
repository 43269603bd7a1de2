"""Policies on the Hugging Face Hub, where a run folder's config.json and model.safetensors belong.

    python -m agents.hub push run=pretrained/hopper repo=USER/NAME
    python -m agents.hub push run=pretrained/hopper repo=USER/NAME private=true video=hopper.mp4
    python -m agents.hub push run=pretrained/hopper to=FOLDER      # what would be uploaded

`load_actor("USER/NAME")` acts with it, "USER/NAME@REVISION" with a branch, tag or commit;
`python eval.py run=USER/NAME` copies it to runs/hub and scores it.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.checkpoint import load_policy
from agents.critic.file import CRITIC
from common.arguments import parse_arguments, run_command
from common.errors import UserError

# All that acting needs, and what the scores were made by.
FILES = ("config.json", "model.safetensors", "config.yaml", "scores.json", CRITIC)
VIDEO = "replay.mp4"  # the name that the Hub shows
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
CARD = """
# {name}

A return-conditioned {backbone} policy for {environment}, trained offline on {dataset} by
[Decision minRNN](https://arxiv.org/abs/2410.01201).

```python
from agents import load_actor

actor = load_actor("{repo}")
actor.reset()
action = actor.act(observation)  # from then on: actor.act(observation, reward)
```

{scores}
{video}
Trained on {dataset} (sha256 {sha256}) for {steps} updates; config.yaml has every setting.
"""


@dataclass
class PushConfig:
    """Arguments of `push`.

    Attributes:
        run: The run folder.
        repo: The repository, as USER/NAME; it is made if it does not exist.
        to: A folder to write instead of uploading.
        private: Whether a repository that is made is private.
        video: An .mp4 file to show.
    """

    run: str
    repo: str | None = None
    to: str | None = None
    private: bool = False
    video: str | None = None

    def __post_init__(self) -> None:
        if (self.repo is None) == (self.to is None):
            raise UserError("give either repo=USER/NAME, to upload, or to=FOLDER, to write.")
        if self.repo is not None and _REPOSITORY.fullmatch(self.repo) is None:
            raise UserError(f"repo is '{self.repo}'; give it as USER/NAME.")
        if self.video is not None and not (
            self.video.endswith(".mp4") and Path(self.video).is_file()
        ):
            raise UserError(f"video is '{self.video}'; give an .mp4 file that is there.")


def find_run(run: str | Path) -> Path:
    """Returns the folder of a run: a folder here, or else a repository of the Hub, downloaded.

    Args:
        run: A folder, "USER/NAME" or "USER/NAME@REVISION". What is in a folder that is there is
            never looked for on the Hub; HF_HUB_OFFLINE=1 takes what was downloaded before.

    Raises:
        UserError: The repository cannot be downloaded, or holds no policy.
    """
    asked = _REPOSITORY.fullmatch(str(run))
    if asked is None or Path(run).parent.is_dir():
        return Path(run)
    from huggingface_hub import snapshot_download

    repository, revision = asked.groups()
    where = f"there is no folder {run}, and the repository {repository} of the Hugging Face Hub"
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(FILES))
    except Exception as error:  # the network and the Hub can fail in many ways
        raise UserError(
            f"{where} cannot be downloaded ({_reason(error)}); check its name, the network, and "
            "for a private one HF_TOKEN or `hf auth login`."
        ) from error
    if not all(Path(folder, name).exists() for name in FILES[:2]):
        raise UserError(
            f"{where} holds no policy of this project: {' and '.join(FILES[:2])} are not both "
            "there; give another one."
        )
    return Path(folder)


def own_folder(run: str | Path) -> Path:
    """Returns a run's folder that may be written to: of a repository, a copy in runs/hub.

    Raises:
        UserError: As of `find_run`.
    """
    found = find_run(run)
    if found == Path(run):
        return found
    folder = Path("runs", "hub", *str(run).split("/"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (found / name).exists():
            shutil.copyfile(found / name, folder / name)
    return folder


def write_folder(run: Path, folder: Path, repo: str, video: Path | None = None) -> None:
    """Writes what is uploaded: the files of a run, its model card, and a video.

    Args:
        run: The run folder.
        folder: Gets the files; is made if it does not exist.
        repo: The repository, as the card names it.
        video: An .mp4 file.

    Raises:
        UserError: The run folder holds no policy or a damaged one, or no scores.
    """
    step = load_policy(run)[2]
    scores = _read_scores(run)
    description = json.loads((run / "config.json").read_text(encoding="utf-8"))
    backbone: str = description["backbone"]["name"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    if video is not None:
        shutil.copyfile(video, folder / VIDEO)
    card = _card(repo, backbone, step, description["dataset"], scores, (folder / VIDEO).exists())
    (folder / "README.md").write_text(card, encoding="utf-8")


def _read_scores(run: Path) -> list[dict[str, Any]]:
    path = run / "scores.json"
    try:
        scores: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        scores[0]["return_mean"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} holds no scores for the model card; make them with `python eval.py run={run}`."
        ) from error
    return scores


def _card(
    repo: str,
    backbone: str,
    step: int,
    dataset: dict[str, Any],
    scores: list[dict[str, Any]],
    has_video: bool,
) -> str:
    """Returns README.md: what the Hub indexes, how to act, and the scores."""
    from huggingface_hub import EvalResult, ModelCardData

    def result(kind: str, environment: str, value: str) -> EvalResult:
        return EvalResult(
            task_type="reinforcement-learning",
            task_name="offline reinforcement learning",
            dataset_type=environment,
            dataset_name=environment,
            metric_type=kind,
            metric_value=value,
        )

    results, lines = [], []
    for score in scores:
        played = score["evaluation"]
        environment, target = played["environment_id"], played["target_returns"][0]
        words = f"{score['return_mean']:.1f} +/- {score['return_std']:.1f}"
        results.append(result("mean_reward", environment, words))
        # Scores of an earlier version do not say how it was asked for.
        way = ", held" * bool(played.get("held")) + ", chosen" * bool(played.get("chosen"))
        line = f"- {environment}, asked for {target:,.0f}{way}: return {words}"
        if score["normalized_score_mean"] is not None:
            words = f"{score['normalized_score_mean']:.1f} +/- {score['normalized_score_std']:.1f}"
            results.append(result("normalized_score", environment, words))
            line += f", normalised {words}"
        lines.append(
            f"{line} (mean and standard deviation over {len(score['episode_returns'])} episodes, "
            f"seed {played['seed']}; {played['engine']} {score['engine_version']}, MuJoCo "
            f"{score['mujoco_version']})"
        )
    name = repo.partition("/")[2] or repo
    address = f"https://huggingface.co/{repo}/resolve/main/{VIDEO}"
    data = ModelCardData(
        model_name=name,
        license="mit",
        library_name="decision-minrnn",
        pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "offline-rl", "decision-transformer", backbone],
        eval_results=results,
    )
    text = CARD.format(
        name=name,
        repo=repo,
        backbone=backbone,
        environment=scores[0]["evaluation"]["environment_id"],
        dataset=dataset["id"],
        sha256=dataset["sha256"],
        steps=f"{step:,}",
        scores="\n".join(lines),
        video=f"\n<video controls src='{address}'></video>\n" if has_video else "",
    )
    return f"---\n{data.to_yaml()}\n---\n{text}"


def push(run: Path, repo: str, *, private: bool = False, video: Path | None = None) -> str:
    """Uploads a run with a model card, and returns the address of the commit.

    Raises:
        UserError: There is no token, the run is incomplete, or the upload fails.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise UserError("the Hugging Face Hub needs a token; set HF_TOKEN or run `hf auth login`.")
    with tempfile.TemporaryDirectory() as folder:
        write_folder(run, Path(folder), repo, video)
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            message = f"A policy of Decision minRNN: {run.name}"
            done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        except Exception as error:  # the network and the Hub can fail in many ways
            raise UserError(
                f"{run} cannot be uploaded to {repo} ({_reason(error)}); check the name, the "
                "network and the rights of the token."
            ) from error
    return str(done.commit_url)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0].rstrip(".: ")


def main(arguments: list[str]) -> None:
    """Pushes one run from the command line."""
    if arguments[:1] != ["push"] and not {"-h", "--help"} & set(arguments):
        raise UserError(
            f"'{' '.join(arguments[:1])}' is no command; give push, as in `python -m agents.hub "
            "push run=RUN repo=USER/NAME`."
        )
    config = parse_arguments(PushConfig, [word for word in arguments if word != "push"])
    run, video = Path(config.run), None if config.video is None else Path(config.video)
    if config.to is not None:
        write_folder(run, Path(config.to), f"USER/{Path(config.to).name}", video)
        print(f"Written: {config.to}")
    else:
        print(f"Uploaded: {push(run, str(config.repo), private=config.private, video=video)}")


if __name__ == "__main__":
    run_command(main)
