"""The training loop, and what it stands on: recipes, ranks, optimizers, schedules, checkpoints."""
