"""What models and heads are made of: the layer, and what they share (inputs, dropout, freezing, loading, hooks)."""
