"""key=value arguments: a word stays the word that was typed."""

from dataclasses import dataclass

import pytest

from common.arguments import parse_arguments
from common.errors import UserError


@dataclass
class Config:
    """Keys of a command."""

    dataset: str
    name: str | None = None
    steps: int = 3
    wait: bool = False


@pytest.mark.parametrize("word", ["no", "on", "true", "1e3", "010", "1_000", "0x1f", ".5", "a=b"])
def test_a_word_that_yaml_reads_as_something_else_stays_a_word(word):
    found = parse_arguments(Config, [f"dataset={word}", f"name={word}", "steps=5", "wait=yes"])
    assert found == Config(word, word, 5, True)


def test_null_is_nothing_where_nothing_is_allowed():
    assert parse_arguments(Config, ["dataset=a", "name=null"]) == Config("a")
    with pytest.raises(UserError, match="dataset"):
        parse_arguments(Config, ["dataset=null"])
