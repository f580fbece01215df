"""Checkpoints without transformers: finding one, and reading its configuration and its tensors."""
