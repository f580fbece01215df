"""What every model of bertfast does besides computing: start weights, loading, saving, device, dtype, size."""

from __future__ import annotations

import copy
import inspect
import os
from typing import Any

import torch
from torch import nn

from .. import checkpoint
from ..config import BertConfig
from ..errors import ArgumentError
from .finite import check_weights
from .resize import new_size, resize


class PretrainedModel(nn.Module):
    """Base of the models; a subclass takes (config, **options) and ends with `self.apply(self._init_weights)`."""

    base_model_prefix = "bert"
    loading_report: checkpoint.Report | None = (
        None  # what `from_pretrained` found missing or unused
    )

    def __init__(self, config: BertConfig):
        super().__init__()
        if not isinstance(config, BertConfig):
            if not hasattr(config, "to_dict"):
                raise ArgumentError("config", "a BertConfig", type(config).__name__)
            config = BertConfig.from_dict(config.to_dict())  # transformers' own
        config.validate()
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | os.PathLike[str],
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        config: BertConfig | None = None,
        check_finite: bool = False,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        ignore_mismatched_sizes: bool = False,
        **options: Any,
    ):
        """A model in eval mode with the weights of a checkpoint of Hugging Face's.

        Weights that the checkpoint lacks start as in a new model; one log line says which, and which were not used.

        Args:
            path_or_hub_id: a directory, or a model id on the Hugging Face hub (its cache and offline mode hold).
            dtype: of the model; None or "auto" for the checkpoint's own.
            device: where the parameters are made; the CPU if absent.
            revision, token, cache_dir, local_files_only: for a hub id, as in huggingface_hub.
            config: instead of the checkpoint's config.json.
            check_finite: raise, naming the first, if a weight is not finite; the model's `forward` checks too.
            ignore_mismatched_sizes: start weights of another shape anew, instead of an error.
            **options: of the model's class (add_pooling_layer), and fields of the config (num_labels=3).

        Raises:
            CheckpointError: nothing there, or not readable, not safe, or weights of another model.
            ConfigError: the config is missing or describes no encoder that bertfast runs.
            ArgumentError: an unknown option; a weight is not finite.
        """
        hub = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }
        folder = checkpoint.resolve(path_or_hub_id, **hub)
        own, fields = _split_options(cls, options)
        if config is None:
            config = BertConfig.from_pretrained(folder, **fields)
        elif fields:
            config = BertConfig.from_dict({**config.to_dict(), **fields})
        weights = checkpoint.read_state_dict(folder)
        with torch.device("meta"):
            model = cls(config, **own)
        model = model.to(_dtype(dtype, weights))
        cls._prepare_weights(weights)
        model.loading_report = checkpoint.load_into(
            *(model, weights),
            initialize=model._init_weights,
            device=device,
            assign=True,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            source=str(path_or_hub_id),
        )
        if check_finite:
            check_weights(model)
            for module in model.modules():
                if hasattr(module, "check_finite"):
                    module.check_finite = True
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write config.json and model.safetensors (in shards above max_shard_size) as transformers loads them.

        All or nothing: a failure leaves what was there. Frozen weights are written as they were before freezing.

        Raises:
            ArgumentError: safe_serialization is False (bertfast writes no pickles).
            CheckpointError: the files cannot be written, or a weight has no values (meta device).
        """
        if not safe_serialization:
            raise ArgumentError(
                "safe_serialization", "True", "False", "Use torch.save(model.state_dict(), path)."
            )
        checkpoint.save(
            *(self.state_dict(), self.config, save_directory),
            max_shard_size=max_shard_size,
            architecture=type(self).__name__,
        )

    @property
    def base_model(self) -> nn.Module:
        """The encoder: `bert` of a head, a `BertModel` itself."""
        return getattr(self, self.base_model_prefix, self)

    def get_input_embeddings(self) -> nn.Module:
        """The table of word vectors."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another table in its place."""
        self.base_model.embeddings.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The decoder of a masked-language-model head, else None."""
        return None

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Change the size of the vocabulary, config.vocab_size too; rows come and go at the end, as in transformers.

        Parameters stay the same objects and tied ones tied; an optimizer made earlier holds state of the old shape.

        Args:
            new_num_tokens: how many words; None for as many as there are.
            pad_to_multiple_of: round that up to a multiple of this.
            mean_resizing: draw new rows around the mean of the old ones (N(mean, 1e-9 covariance)), else from
                N(0, config.initializer_range).

        Returns:
            The word embeddings.

        Raises:
            ArgumentError: a number is not a positive integer.
        """
        words = self.get_input_embeddings()
        count = new_size(words.num_embeddings, new_num_tokens, pad_to_multiple_of)
        if count != words.num_embeddings:
            decoder, std = self.get_output_embeddings(), self.config.initializer_range
            resize(words, decoder, count, mean_resizing, std)
            self.config.vocab_size = count
        return words

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Compute each layer again in backward instead of keeping what it needs: less memory, same gradients.

        Args:
            gradient_checkpointing_kwargs: for torch.utils.checkpoint.checkpoint; default {"use_reentrant": False}.

        Raises:
            ArgumentError: preserve_rng_state is False; dropout would drop other elements the second time.
        """
        options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        if options.get("preserve_rng_state") is False:
            raise ArgumentError(
                "preserve_rng_state", "True", "False", "Dropout draws its seeds again in backward."
            )
        self.base_model.encoder.checkpointing = options

    def gradient_checkpointing_disable(self) -> None:
        """Keep what backward needs again."""
        self.base_model.encoder.checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether `gradient_checkpointing_enable` is in force."""
        return self.base_model.encoder.checkpointing is not None

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are (the first one that is not frozen)."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's parameters (the first one)."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of elements of the parameters, each counted once; without the embedding tables if so asked."""
        tables = (
            {m.weight for m in self.modules() if isinstance(m, nn.Embedding)}
            if exclude_embeddings
            else set()
        )
        return sum(
            p.numel()
            for p in self.parameters()
            if p not in tables and (p.requires_grad or not only_trainable)
        )

    @classmethod
    def _prepare_weights(cls, weights: dict[str, torch.Tensor]) -> None:
        """What a subclass has to change in the tensors of a checkpoint before they are taken."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """BERT's start: normal weights, biases and the padding row zero, LayerNorm the identity."""
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(0.0, self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def _split_options(cls: type, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the model's class and fields of its config; anything else is an error."""
    known = inspect.signature(cls.__init__).parameters.keys() - {"self", "config"}
    defaults = BertConfig()
    own = {name: value for name, value in options.items() if name in known}
    fields = {name: value for name, value in options.items() if name not in known}
    for name, value in fields.items():
        if not hasattr(defaults, name):
            expected = f"an option of {cls.__name__} or a field of BertConfig"
            raise ArgumentError(
                name, expected, type(value).__name__, f"Known: {', '.join(sorted(known))}."
            )
    return own, copy.deepcopy(fields)


def _dtype(dtype: torch.dtype | str | None, weights: dict[str, torch.Tensor]) -> torch.dtype:
    if dtype is None or dtype == "auto":
        return next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32)
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ArgumentError("dtype", "a floating torch.dtype, its name, or 'auto'", repr(dtype))
    return found
