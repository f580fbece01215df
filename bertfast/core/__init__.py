"""BERT on a packed batch of real tokens, with torch alone: batches, views of weights, the encoder, heads."""
