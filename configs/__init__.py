"""Hydra configurations and their schema."""
