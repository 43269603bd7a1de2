"""Tests of data never touch the user's own store."""

import pytest


@pytest.fixture(autouse=True)
def own_store(store):
    """Every test here has a store of its own."""
