"""Text: files (`readers`), token ids (`tokenizer`), settings (`recipe`), vectors of token states (`pooling`)."""
