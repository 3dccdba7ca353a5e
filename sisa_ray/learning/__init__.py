"""Recipes, the stage trainer and ensemble aggregation: plain PyTorch, without Ray."""
