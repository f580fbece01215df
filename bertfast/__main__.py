"""`python -m bertfast` is the command `bertfast`."""

from .cli import main

main(prog_name="bertfast")
