"""The command `bertfast`. Exit status: 0 done, 1 the machine failed (disk full), 2 something given is wrong."""

from __future__ import annotations

import importlib
import sys
from typing import Any

try:
    import click
except ModuleNotFoundError:
    sys.exit("bertfast: the command line needs the package click: pip install click")

from .. import __version__
from ..errors import BertfastError

# each is a module here (- as _) with a command of its name
_COMMANDS = (
    *("encode", "info", "explain", "fill-mask", "demo", "tune", "verify"),
    *("prepare", "vocab", "show", "pretrain", "evaluate"),
    *("finetune", "predict", "reproduce"),
)


class Failure(click.ClickException):
    """An error that ends the command with one line on standard error."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"bertfast: {self.message}", file=file or sys.stderr)


class Commands(click.Group):
    """The commands, imported when they are asked for; bertfast's errors become one line each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module = name.replace("-", "_")
        return getattr(importlib.import_module(f".{module}", __package__), module)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly: who read our output has had enough
        except BertfastError as error:
            raise Failure(str(error), 2) from error
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise Failure(f"{place}{error.strerror or error}", 1) from error
        except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise Failure("out of memory: try a smaller --batch-tokens", 1) from error


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  bertfast encode MODEL sentences.txt -o vectors.npy
  bertfast info MODEL
  bertfast COMMAND --help

MODEL is a directory with a checkpoint, or a model id on the Hugging Face hub.
""",
)
@click.version_option(__version__, prog_name="bertfast")
def main() -> None:
    """Text in, vectors out, with BERT encoders over real tokens only."""
