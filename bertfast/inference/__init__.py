"""Texts in; vectors (`encoder`) or words (`fill_mask`) out."""
