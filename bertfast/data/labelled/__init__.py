"""Labelled examples of fine-tuning, read whole: tables, CoNLL, SQuAD. A mistake in a file is an `InputFileError` that
names the file and the line."""
