"""transformers' common tests of models, on the BERT classes of the module that SUITE_MODULE names.

test_transformers_suite.py runs this file in a process of its own. By hand, with transformers' own classes:

    SUITE_MODULE=transformers SUITE_TESTS=.venv/transformers-<version>/tests \
      .venv/bin/python -m pytest -c /dev/null --noconftest tests/models/transformers_suite.py

The source distribution of transformers has the tests that all its models share. It lacks those of each model, which
are written anew here, and some modules that the shared ones import:

- exporters.test_export and generation.test_utils: of their classes nothing but the name is needed here, so empty ones
  stand in for them;
- pipelines, without which PipelineTesterMixin tests nothing: test_pipelines takes its place;
- utils.test_configuration_utils, of ConfigTester: the configuration is transformers' own class, as test_config says;
- distributed_testing_utils, of FSDPTesterMixin, TensorParallelTesterMixin and ExpertParallelTesterMixin: these skip
  every model without such a plan, and BERT has none.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import sys
import types
import unittest
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.ecosystem import SPREAD, exact_pipeline, same_answers

COMMON = "transformers_tests"  # the folder as a package, whose name nothing else has


def _stand_in(name: str, **members) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


_stand_in(COMMON, __path__=[os.environ["SUITE_TESTS"]])
for _folder, _file, _class in (
    ("exporters", "test_export", "ExportTesterMixin"),
    ("generation", "test_utils", "GenerationTesterMixin"),
):
    _stand_in(f"{COMMON}.{_folder}", __path__=[])
    _stand_in(f"{COMMON}.{_folder}.{_file}", **{_class: type(_class, (), {})})

modeling = importlib.import_module(f"{COMMON}.test_modeling_common")
training = importlib.import_module(f"{COMMON}.test_training_mixin")

MODULE = importlib.import_module(os.environ["SUITE_MODULE"])
NAMES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
CLASSES = {name: getattr(MODULE, name) for name in NAMES}
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "deep", "sea", "whales", "swim", "is", "."
]  # fmt: skip
TEXTS = ["whales swim [MASK] the sea .", "the [MASK] sea"]
LABELS = {0: "contradiction", 1: "entailment"}
PIPELINES = {
    "fill-mask": ("BertForMaskedLM", {"batch_size": 2}),
    "text-classification": ("BertForSequenceClassification", {"batch_size": 2, "top_k": None}),
    "zero-shot-classification": (
        "BertForSequenceClassification",
        {"batch_size": 2, "candidate_labels": ["whales", "the sea"], "hypothesis_template": "{} is deep"},
    ),
    "token-classification": ("BertForTokenClassification", {"batch_size": 2}),
    "feature-extraction": ("BertModel", {}),  # would show the hidden states of padding in a batch
}  # fmt: skip

OURS = MODULE.__name__ == "bertfast"


class BertTester:
    """What the common tests ask of a model's tester: sizes, a small configuration, inputs to go with it."""

    is_training = True
    causal_lm_class = CLASSES["BertForMaskedLM"]  # what test_training_overfit trains
    batch_size, seq_length, num_choices = 7, 9, 4
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 99, 32, 2, 4

    def get_config(self):
        return transformers.BertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=44,
            max_position_embeddings=70,
            type_vocab_size=3,
        )

    def prepare_config_and_inputs_for_common(self):
        """The mask has holes everywhere but at the first token."""
        shape = [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": modeling.ids_tensor(shape, self.vocab_size),
            "token_type_ids": modeling.ids_tensor(shape, 3),
            "attention_mask": modeling.random_attention_mask(shape),
        }
        return self.get_config(), inputs


class TransformersSuite(modeling.ModelTesterMixin, training.TrainingTesterMixin, unittest.TestCase):
    """The common tests, and what is particular to BERT."""

    all_model_classes = tuple(CLASSES.values())
    model_tester = None
    test_can_init_all_missing_weights_before_2023 = True  # a test that models of that age may skip

    def setUp(self):
        self.model_tester = BertTester()
        seed = int(os.environ.get("SUITE_SEED", 20))
        transformers.set_seed(seed)
        modeling.global_rng.seed(seed)  # of the inputs

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """The common labels; those of BertForPreTraining, which has two kinds, are unknown there."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if return_labels and model_class.__name__ == "BertForPreTraining":
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
            inputs["next_sentence_label"] = inputs["labels"][:, 0].clone()
        return inputs

    def test_config(self):
        for name, model_class in CLASSES.items():
            assert model_class.config_class is transformers.BertConfig, name

    def test_shapes(self):
        """What every class gives with and without a mask, and by which engine; with labels, a finite loss too."""
        tester = self.model_tester
        config, inputs = tester.prepare_config_and_inputs_for_common()
        rows, tokens = (tester.batch_size,), (tester.batch_size, tester.seq_length)
        expected = {
            "BertModel": {
                "last_hidden_state": (*tokens, tester.hidden_size),
                "pooler_output": (*rows, tester.hidden_size),
            },
            "BertForPreTraining": {
                "prediction_logits": (*tokens, tester.vocab_size),
                "seq_relationship_logits": (*rows, 2),
            },
            "BertForMaskedLM": {"logits": (*tokens, tester.vocab_size)},
            "BertForNextSentencePrediction": {"logits": (*rows, 2)},
            "BertForSequenceClassification": {"logits": (*rows, 3)},
            "BertForMultipleChoice": {"logits": (*rows, tester.num_choices)},
            "BertForTokenClassification": {"logits": (*tokens, 3)},
            "BertForQuestionAnswering": {"start_logits": tokens, "end_logits": tokens},
        }
        for name, model_class in CLASSES.items():
            wanted = copy.deepcopy(config)
            wanted.num_labels = 2 if name == "BertForQuestionAnswering" else 3
            model = model_class(wanted).eval()
            for given in (inputs, {"input_ids": inputs["input_ids"]}):
                with self.subTest(f"{name} with {', '.join(given)}"), torch.no_grad(), _engine():
                    shapes = _shapes(model(**self._prepare_for_class(given, model_class)))
                    assert shapes == expected[name]
                    if name != "BertModel":
                        result = model(**self._prepare_for_class(given, model_class, True))
                        assert _shapes(result) == {"loss": (), **expected[name]}
                        assert result.loss.isfinite()

    def test_pipelines(self):
        """transformers' pipelines of text give what they give with its own class and the same weights."""
        tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
        config = self.model_tester.get_config()
        config.vocab_size, config.id2label = len(WORDS), LABELS
        config.label2id = {label: number for number, label in LABELS.items()}
        for task, (name, options) in PIPELINES.items():
            theirs = getattr(transformers, name)(copy.deepcopy(config))
            ours = CLASSES[name](copy.deepcopy(config))
            with torch.no_grad():
                for parameter in theirs.parameters():
                    parameter.normal_(std=SPREAD)
            ours.load_state_dict(theirs.state_dict())
            theirs, ours = (
                transformers.pipeline(task, model=model.eval(), tokenizer=tokenizer, device="cpu")
                for model in (theirs, ours)
            )
            with self.subTest(task):
                exact = exact_pipeline(theirs)
                got, want, right = (made(TEXTS, **options) for made in (ours, theirs, exact))
                same_answers(got, want, right)


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    """Ours must compute what is called here; nothing is asked of another module."""
    if not OURS:
        yield
        return
    with MODULE.dispatch.record() as log:
        yield
    assert log, "no operation ran"
    assert "transformers" not in {choice.backend for choice in log}, log


def _shapes(outputs) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in outputs.items()}
