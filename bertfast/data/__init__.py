"""Text: token ids (`tokenizer`), and vectors of token states (`pooling`)."""
