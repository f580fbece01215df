"""What a model is trained for: examples, packed batches, losses and metrics."""
