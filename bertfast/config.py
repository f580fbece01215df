"""`BertConfig`: the hyperparameters of a BERT encoder, in the words and the file format of Hugging Face."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ._config_rules import check, is_int, message
from ._files import atomic_write, read_json
from .errors import ConfigError

logger = logging.getLogger("bertfast")

CONFIG_NAME = "config.json"

# Written to config.json whatever their value.
_BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "use_cache": True,
    "classifier_dropout": None,
    "tie_word_embeddings": True,
}
# Written where they differ from these values. Fields that only transformers 4 or only 5 has are here too.
_COMMON: dict[str, Any] = {
    "_name_or_path": "",
    "add_cross_attention": False,
    "architectures": None,
    "bos_token_id": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "dtype": None,
    "eos_token_id": None,
    "finetuning_task": None,
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "is_decoder": False,
    "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "output_attentions": False,
    "output_hidden_states": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "return_dict": True,
    "sep_token_id": None,
    "task_specific_params": None,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "torchscript": False,
    "transformers_version": None,
}
_DEFAULTS = {**_BERT, **_COMMON}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


class BertConfig:
    """The configuration of a BERT encoder; every field of transformers' ``BertConfig``, with its default.

    Keys that BERT does not know are kept, read as attributes and written back. A config is not checked when it is
    made (fields are often set one by one); `validate` does it, and is called by `from_pretrained` and by the model.

    Args:
        **fields: any of vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size,
            hidden_act (gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh), hidden_dropout_prob,
            attention_probs_dropout_prob, max_position_embeddings, type_vocab_size, initializer_range,
            layer_norm_eps (1e-12), pad_token_id, classifier_dropout, tie_word_embeddings, dtype (a torch dtype or its
            name), id2label, label2id, num_labels, problem_type, and any other key.

    Raises:
        ConfigError: id2label, num_labels or dtype cannot be understood.
    """

    def __init__(self, /, **fields: Any):
        # Unknown keys live apart, so that a key named like a method cannot hide it.
        object.__setattr__(self, "_extra", {})
        num_labels = fields.pop("num_labels", None)
        legacy_dtype = fields.pop("torch_dtype", None)
        if fields.get("dtype") is None:
            fields["dtype"] = legacy_dtype
        for name, default in _DEFAULTS.items():
            setattr(self, name, copy.deepcopy(fields.pop(name, default)))
        self.dtype = _to_dtype(self.dtype)
        self._extra.update(copy.deepcopy(fields))
        self._set_labels(num_labels)

    @classmethod
    def base(cls, **fields: Any) -> BertConfig:
        """BERT-base: 12 layers, hidden size 768, 12 heads; uncased English vocabulary unless vocab_size is given."""
        return cls(**fields)

    @classmethod
    def large(cls, **fields: Any) -> BertConfig:
        """BERT-large: 24 layers, hidden size 1024, 16 heads."""
        sizes = {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        }
        return cls(**{**sizes, **fields})

    # Reading

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> BertConfig:
        """A config from the contents of a config.json; absent fields take their defaults, as in transformers."""
        num_labels = None if "id2label" in overrides else overrides.pop("num_labels", None)
        config = cls(**{**config_dict, **overrides})
        if num_labels is not None:
            config.num_labels = num_labels  # the file's label names belong to another head
        return config

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str], **overrides: Any) -> BertConfig:
        """A config from one JSON file.

        Raises:
            ConfigError: the file cannot be read or does not hold a JSON object.
        """
        return cls._from_fields(read_json(Path(path), ConfigError), path, overrides)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> BertConfig:
        """The validated config of a checkpoint: a directory, a config.json, or a model id on the Hugging Face hub.

        Args:
            path_or_hub_id: where the checkpoint is.
            revision, token, cache_dir, local_files_only: as in `bertfast.checkpoint.resolve`; for hub ids only.
            **overrides: fields that replace those of the file.

        Raises:
            CheckpointError: no such directory, or the id cannot be fetched.
            ConfigError: the file is missing, unreadable, lacks a size, or describes an impossible or other model.
        """
        path = Path(path_or_hub_id).expanduser()
        if not path.is_file():
            from .checkpoint import CONFIG_FILES, resolve

            folder = resolve(
                path_or_hub_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=CONFIG_FILES,
            )
            path = folder / CONFIG_NAME
        fields = read_json(path, ConfigError)
        model_type = fields.get("model_type", "bert")
        missing = [name for name in _REQUIRED if name not in fields and name not in overrides]
        if missing and model_type == "bert":
            raise ConfigError(
                f"{path}: expected the sizes of a BERT model, {', '.join(missing)} missing."
            )
        config = cls._from_fields(fields, path, overrides)
        try:
            config.validate()
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        return config

    @classmethod
    def _from_fields(
        cls, fields: dict[str, Any], path: str | os.PathLike[str], overrides: Mapping[str, Any]
    ) -> BertConfig:
        try:
            return cls.from_dict(fields, **overrides)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
        except RecursionError as error:
            raise ConfigError(
                f"{path}: expected a flat JSON object, got a deeply nested one."
            ) from error

    # Writing

    def to_dict(self) -> dict[str, Any]:
        """All fields and unknown keys, as JSON values (dtype as a word); the label ids of id2label are int."""
        fields = {name: getattr(self, name) for name in _DEFAULTS}
        if self.dtype is not None:
            fields["dtype"] = str(self.dtype).removeprefix("torch.")
        return copy.deepcopy({**self._extra, **fields})

    def to_json_string(self) -> str:
        """What `save_pretrained` writes: common fields that have their default are left out.

        Raises:
            ConfigError: a field has no JSON form.
        """
        fields = {
            name: value
            for name, value in self.to_dict().items()
            if name not in _COMMON or value != _COMMON[name]
        }
        for name, value in fields.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{name}: expected a value that JSON can hold, got {type(value).__name__} ({error})."
                ) from error
        return json.dumps(dict(sorted(fields.items())), indent=2) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json into a directory (made if need be), atomically; transformers reads it.

        Raises:
            ConfigError: a field has no JSON form.
            OSError: the file cannot be written; an earlier one is left whole.
        """
        text = self.to_json_string()
        os.makedirs(save_directory, exist_ok=True)
        with atomic_write(Path(save_directory) / CONFIG_NAME, "w") as file:
            file.write(text)

    # Use

    @property
    def num_labels(self) -> int:
        """Number of labels of a classification head; setting it makes new label names."""
        return len(self.id2label or ())

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if not is_int(count) or not 1 <= count <= 1_000_000:
            raise ConfigError(message("num_labels", "an integer from 1 to 1000000", count, None))
        if self.id2label is None or len(self.id2label) != count:
            self.id2label = {i: f"LABEL_{i}" for i in range(count)}
            self.label2id = {name: i for i, name in self.id2label.items()}

    @property
    def use_return_dict(self) -> bool:
        """transformers 4's name for return_dict."""
        return self.return_dict

    @property
    def name_or_path(self) -> str:
        """Where the config says that it came from."""
        return self._name_or_path

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> BertConfig:
        """This config: BERT has only a text part (transformers' libraries ask for it)."""
        return self

    def update(self, fields: Mapping[str, Any]) -> None:
        """Set several fields."""
        for name, value in fields.items():
            setattr(self, name, value)

    def validate(self) -> None:
        """Check that this describes an encoder that bertfast can run.

        Raises:
            ConfigError: naming the first wrong field, what was expected, what it is, and what to do.
        """
        check(self)

    def _set_labels(self, num_labels: int | None) -> None:
        chosen = num_labels is not None
        if self.id2label is None or (chosen and self.id2label == _COMMON["id2label"]):
            self.id2label = None
            self.num_labels = num_labels if chosen else 2
        try:
            self.id2label = {int(i): name for i, name in self.id2label.items()}
            if self.label2id in (None, _COMMON["label2id"]):
                self.label2id = {name: i for i, name in self.id2label.items()}
        except (AttributeError, TypeError, ValueError):
            text = message("id2label", "a map from integer to label", self.id2label, None)
            raise ConfigError(text) from None
        if chosen and num_labels != len(self.id2label):
            note = "num_labels is %s, but id2label names %d labels and holds"
            logger.warning(note, num_labels, len(self.id2label))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_extra"][name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DEFAULTS or name == "_extra" or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            self._extra[name] = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BertConfig) and self.to_dict() == other.to_dict()

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def _to_dtype(value: Any) -> torch.dtype | None:
    if value is None or isinstance(value, torch.dtype):
        return value
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    if not isinstance(found, torch.dtype):
        raise ConfigError(
            message("dtype", "the name of a torch dtype such as 'float32'", value, None)
        )
    return found
