"""Labelled examples of fine-tuning, read whole: tables, CoNLL, SQuAD. Mistakes are `InputFileError`s with file and line."""
