"""A name for what distinguishes each run of a comparison.

A run is named after its backbone and after those keys of its configuration that tell it from the
other runs of that backbone, as far as it departs from the plainest of them: ``min_gru``,
``min_gru protocol=streamed``. Runs of different configurations never share a name.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace

from common.errors import UserError
from reports.runs import (
    ABSENT,
    Run,
    unusual,
)


@dataclass(frozen=True)
class Name:
    """What a run is called in a comparison.

    Attributes:
        text: ``min_gru protocol=streamed``.
        backbone: ``min_gru``.
        central: It is the configuration from which the others of its backbone depart.
    """

    text: str
    backbone: str
    central: bool


def name_runs(runs: Sequence[Run], *, by_folder: bool = False) -> list[Name]:
    """Names each run after its backbone and what tells it from the others of that backbone.

    Within one task, two runs have the same name only if nothing but their seed differs. Of keys
    that change together, one is named. The configuration that departs from the defaults in the
    fewest of them, and of several the one nearest to all other runs, is the centre, and has the
    backbone's name alone; if two are equally central, names say every value.

    Args:
        runs: All that are compared.
        by_folder: Names them after their folders instead: ``bc`` of ``hopper-medium/bc-seed0``.
            Then runs of one name may differ in their protocol, as in the data's hash, and a
            backbone's centre is the one that has its name.

    Raises:
        UserError: Folders of one name and task hold runs of different configurations.
    """
    facts = _facts(runs)
    labels = _labels(dict.fromkeys(key for fact in facts for key in fact))
    names: dict[int, Name] = {}
    for backbone in dict.fromkeys(run.backbone for run in runs):
        own = [i for i, run in enumerate(runs) if run.backbone == backbone]
        keys = _telling_keys([facts[i] for i in own], [runs[i].task for i in own])
        values = [tuple(facts[i].get(key, ABSENT) for key in keys) for i in own]
        distance = {
            value: (
                sum(a != runs[i].defaults.get(key, a) for key, a in zip(keys, value, strict=True)),
                sum(a != b for other in values for a, b in zip(value, other, strict=True)),
            )
            for i, value in zip(own, values, strict=True)
        }
        centre = min(distance, key=distance.__getitem__)
        unique = list(distance.values()).count(distance[centre]) == 1
        for i, value in zip(own, values, strict=True):
            departures = [
                f"{labels[key]}={_text(now)}"
                for key, now, then in zip(keys, value, centre, strict=True)
                if now != then or not unique
            ]
            names[i] = Name(" ".join([backbone, *departures]), backbone, value == centre)
    named = [names[i] for i in range(len(runs))]
    return _named_by_folder(runs, named) if by_folder else named


def _named_by_folder(runs: Sequence[Run], named: Sequence[Name]) -> list[Name]:
    texts = [re.sub(r"-seed\d+", "", run.folder.resolve().name) for run in runs]
    first: dict[tuple[str, str], int] = {}
    for i, (run, text) in enumerate(zip(runs, texts, strict=True)):
        other = first.setdefault((run.task, text), i)
        if runs[i].config != runs[other].config:
            raise UserError(
                f"{run.folder} and {runs[other].folder} have the same name but differ in more than "
                f"their seed ({named[i].text}; {named[other].text}): leave out --name-by folder, "
                "or rename one of them."
            )
    plain = {n.backbone for n, text in zip(named, texts, strict=True) if text == n.backbone}
    return [
        replace(n, text=text, central=text == n.backbone if n.backbone in plain else n.central)
        for n, text in zip(named, texts, strict=True)
    ]


def _labels(keys: Collection[str]) -> dict[str, str]:
    """Returns what a name calls each key: ``tokens`` of ``policy.tokens``, if that is clear."""
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    labels = {}
    for key in keys:
        group, _, leaf = key.rpartition(".")
        labels[key] = group if leaf == "name" else leaf if leaves[leaf] == 1 else key
    return labels


def _facts(runs: Sequence[Run]) -> list[dict[str, Hashable]]:
    """Returns what may name each run: its configuration, and its protocol where it is unusual."""
    facts: list[dict[str, Hashable]] = [dict(run.config) for run in runs]
    for task in dict.fromkeys(run.task for run in runs):
        same = [i for i, run in enumerate(runs) if run.task == task]
        protocols = [runs[i].protocol for i in same]
        for i, protocol, departures in zip(same, protocols, unusual(protocols), strict=True):
            for key in protocol:
                if key != "updates":  # `steps` and `scored_at_update` say it
                    value = protocol[key] if key in departures else "usual"
                    facts[i][key.replace(" ", "_")] = value
    return facts


def _telling_keys(facts: Sequence[dict[str, Hashable]], tasks: Sequence[str]) -> list[str]:
    """Returns few keys that tell apart all that differs within a task, the most telling first."""
    candidates = list(dict.fromkeys(key for fact in facts for key in fact))
    chosen: list[str] = []

    def groups(keys: list[str]) -> list[tuple[Hashable, ...]]:
        return [
            (task, *(fact.get(key, ABSENT) for key in keys))
            for fact, task in zip(facts, tasks, strict=True)
        ]

    def pairs_together(keys: list[str]) -> int:
        return sum(count**2 for count in Counter(groups(keys)).values())

    while True:
        together = pairs_together(chosen)
        key = min(candidates, key=lambda key: pairs_together([*chosen, key]))
        if pairs_together([*chosen, key]) == together:
            return [key for key in candidates if key in chosen]
        chosen.append(key)


def _text(value: Hashable) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)
