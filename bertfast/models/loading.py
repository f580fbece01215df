"""Hostile checkpoints are refused before transformers opens them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..checkpoint.reading import check_files


class CheckedLoading:
    """Mixin of the models: transformers' `from_pretrained` after a look at a local folder's files."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `from_pretrained`.

        Raises:
            CheckpointError: a folder holds an index that names files elsewhere, a safetensors file that is not whole,
                or a pickle with code.
        """
        if isinstance(pretrained_model_name_or_path, str | os.PathLike):
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            if folder.is_dir():
                check_files(folder)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
