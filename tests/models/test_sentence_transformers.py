"""sentence-transformers: its encoders give and learn the same after `bertfast.optimize`, and save the same files."""

from __future__ import annotations

import copy

import numpy
import pytest
import torch

import bertfast
from bertfast import BertModel
from harness import near, seeds
from models.ecosystem import checkpoint

library = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed (extra: test)"
)
datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra: test)")

TEXTS = [
    "A man is eating food.",
    "Someone reads the newspaper in a park, slowly, while it rains and nobody else is there.",
    "ok",
    "",
    "敏捷的棕毛狐狸",
]
WORDS = [
    "a man eats",
    "the dog is reading",
    "ok",
    "who, in the rain, sings?",
    "no",
    "cats and dogs",
]
PAIRS = [(first, second) for first in WORDS[:3] for second in WORDS[3:]]


def double(encoder):
    """A copy of an encoder that computes in float64."""
    return copy.deepcopy(encoder).double()


def tensors(values):
    """What an encoder gave, as tensors."""
    return [torch.as_tensor(value) for value in values]


def same_vectors(ours, encoder, texts, how="encode", **options):
    """Vectors or scores `ours` are those of an encoder that transformers computes, by the accuracy check."""
    eager, exact = (
        tensors(getattr(made, how)(texts, **options)) for made in (encoder, double(encoder))
    )
    near(how, tensors(ours), exact, eager)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small checkpoints with a tokenizer, by the class of the model."""
    made = {}
    for name in ("BertModel", "BertForSequenceClassification", "BertForMaskedLM"):
        fields = {"num_labels": 1} if name == "BertForSequenceClassification" else {}
        made[name] = str(checkpoint(name, tmp_path_factory.mktemp(name), **fields))
    return made


@pytest.mark.tool("sentence-transformers", "SentenceTransformer.encode of the real MiniLM-L6")
def test_encode(minilm, way, tmp_path):
    encoder = library.SentenceTransformer(str(minilm), device="cpu")
    plain = type(encoder[0].auto_model)
    want = encoder.encode(TEXTS)
    assert len(bertfast.optimize(encoder).switched) == 1
    assert type(encoder[0].auto_model) is BertModel
    with way("fused"):
        vectors = encoder.encode(TEXTS)
        assert numpy.array_equal(encoder.encode(TEXTS, batch_size=2), vectors)
        tokens = encoder.encode(TEXTS, output_value="token_embeddings")
    encoder.save(str(tmp_path))
    bertfast.restore(encoder)
    assert type(encoder[0].auto_model) is plain
    assert numpy.array_equal(encoder.encode(TEXTS), want)
    same_vectors(vectors, encoder, TEXTS)
    same_vectors(tokens, encoder, TEXTS, output_value="token_embeddings")
    again = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert type(again[0].auto_model) is plain
    assert numpy.array_equal(again.encode(TEXTS), want)


@pytest.mark.tool("sentence-transformers", "our class as a module of a SentenceTransformer")
def test_our_class_inside(folders, way, monkeypatch):
    """Where our class is AutoModel's for BertConfig, it is loaded from the start."""
    import transformers

    mapping = transformers.AutoModel._model_mapping
    monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    theirs = library.SentenceTransformer(folders["BertModel"], device="cpu")
    transformers.AutoModel.register(transformers.BertConfig, BertModel, exist_ok=True)
    encoder = library.SentenceTransformer(folders["BertModel"], device="cpu")
    assert type(encoder[0].auto_model) is BertModel
    with way("fused"):
        got = encoder.encode(WORDS)
    same_vectors(got, theirs, WORDS)


def pooled(folder: str, kind: str):
    encoder = library.SentenceTransformer(folder, device="cpu")
    modules = getattr(library, "sentence_transformer", library).modules
    return library.SentenceTransformer(
        modules=[encoder[0], modules.Pooling(48, pooling_mode=kind), modules.Normalize()],
        device="cpu",
    )


@pytest.mark.tool(
    "sentence-transformers", "pooling: mean, first token, max, weighted mean, last token"
)
@pytest.mark.parametrize("kind", ["mean", "cls", "max", "weightedmean", "lasttoken"])
def test_pooling(folders, kind, way):
    encoder = pooled(folders["BertModel"], kind)
    bertfast.optimize(encoder)
    with way("fused"):
        got = encoder.encode(WORDS)
    bertfast.restore(encoder)
    same_vectors(got, encoder, WORDS)


def trained(model, folder, data, loss, checkpointing=False, kind=""):
    """The losses of three steps, and the weights."""
    arguments = getattr(library, f"{kind}TrainingArguments")(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=3,
        learning_rate=1e-3,
        adam_epsilon=1e-3,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        gradient_checkpointing=checkpointing,
        seed=seeds.seed(),
    )
    trainer = getattr(library, f"{kind}Trainer")(model, arguments, data, loss=loss)
    trainer.train()
    rows = trainer.state.log_history
    losses = torch.tensor([row["loss"] for row in rows if "loss" in row])
    return {"losses": losses.to(next(model.parameters()).dtype), "weights": model.state_dict()}


def same_training(make, loss_of, data, folder, way, expected="fused", **fields):
    theirs, ours = make(), make()
    before = copy.deepcopy(theirs.state_dict())
    exact, eager = (
        trained(model, folder, data, loss_of(model), **fields) for model in (double(theirs), theirs)
    )
    bertfast.optimize(ours)
    with way(expected):
        got = trained(ours, folder, data, loss_of(ours), **fields)
    near("training", got, exact, eager)
    moved = (value - before[name] for name, value in exact["weights"].items())
    assert max(change.abs().max().item() for change in moved) > 1e-4  # it did learn


@pytest.mark.tool("sentence-transformers", "SentenceTransformerTrainer, gradient checkpointing too")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_trainer(folders, checkpointing, way, tmp_path):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    data = datasets.Dataset.from_dict({"anchor": WORDS * 2, "positive": WORDS[::-1] * 2})
    same_training(
        lambda: library.SentenceTransformer(folders["BertModel"], device="cpu"),
        MultipleNegativesRankingLoss,
        *(data, tmp_path, way),
        "modules" if checkpointing else "fused",
        checkpointing=checkpointing,
        kind="SentenceTransformer",
    )


@pytest.mark.tool("sentence-transformers", "CrossEncoder.predict and rank, save and load")
def test_cross_encoder(folders, way, tmp_path):
    encoder = library.CrossEncoder(folders["BertForSequenceClassification"], device="cpu")
    want, ranks = encoder.predict(PAIRS), encoder.rank(WORDS[0], WORDS)
    assert len(bertfast.optimize(encoder).switched) == 2
    with way("fused"):
        scores = encoder.predict(PAIRS)
        got = encoder.rank(WORDS[0], WORDS)
    assert [row["corpus_id"] for row in got] == [row["corpus_id"] for row in ranks]
    encoder.save_pretrained(str(tmp_path))
    again = library.CrossEncoder(str(tmp_path), device="cpu")
    assert numpy.array_equal(again.predict(PAIRS), want)
    bertfast.restore(encoder)
    assert numpy.array_equal(encoder.predict(PAIRS), want)
    same_vectors(scores, encoder, PAIRS, "predict")


@pytest.mark.tool("sentence-transformers", "CrossEncoderTrainer")
def test_cross_encoder_trainer(folders, way, tmp_path):
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    first, second = zip(*PAIRS, strict=True)
    labels = [float(index % 2) for index in range(len(PAIRS))]
    data = datasets.Dataset.from_dict({"query": first, "text": second, "label": labels})
    same_training(
        lambda: library.CrossEncoder(folders["BertForSequenceClassification"], device="cpu"),
        BinaryCrossEntropyLoss,
        *(data, tmp_path, way),
        kind="CrossEncoder",
    )


@pytest.mark.tool(
    "sentence-transformers", "SparseEncoder (SPLADE) with BertForMaskedLM, save and load"
)
def test_sparse_encoder(folders, way, tmp_path):
    encoder = library.SparseEncoder(folders["BertForMaskedLM"], device="cpu")
    want = encoder.encode(WORDS).to_dense()
    assert len(bertfast.optimize(encoder).switched) == 2
    with way("fused"):
        got = encoder.encode(WORDS).to_dense()
    encoder.save_pretrained(str(tmp_path))
    again = library.SparseEncoder(str(tmp_path), device="cpu")
    assert again.encode(WORDS).to_dense().equal(want)
    near("encode", got, double(again).encode(WORDS).to_dense(), want)


@pytest.mark.tool("sentence-transformers", "SparseEncoderTrainer (SPLADE)")
def test_sparse_encoder_trainer(folders, way, tmp_path):
    from sentence_transformers.sparse_encoder import losses

    def loss(model):
        ranking = losses.SparseMultipleNegativesRankingLoss(model)
        return losses.SpladeLoss(model, ranking, document_regularizer_weight=1e-2)

    data = datasets.Dataset.from_dict({"anchor": WORDS * 2, "positive": WORDS[::-1] * 2})
    same_training(
        lambda: library.SparseEncoder(folders["BertForMaskedLM"], device="cpu"),
        loss,
        *(data, tmp_path, way),
        kind="SparseEncoder",
    )


@pytest.mark.tool("sentence-transformers", "MultiVectorEncoder (ColBERT)")
def test_multi_vector_encoder(folders, way):
    kind = getattr(library, "MultiVectorEncoder", None)
    if kind is None:
        pytest.skip(f"sentence-transformers {library.__version__} has no MultiVectorEncoder")
    seeds.restart(3)  # its projection is new
    encoder = kind(folders["BertModel"], device="cpu")
    bertfast.optimize(encoder)
    with way("fused"):
        got = encoder.encode(WORDS)
    bertfast.restore(encoder)
    same_vectors(got, encoder, WORDS)


@pytest.mark.ecosystem_long
@pytest.mark.tool("sentence-transformers", "the real MiniLM-L6 trains the same")
def test_trainer_of_minilm(minilm, way, tmp_path):
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    def make():
        encoder = library.SentenceTransformer(str(minilm), device="cpu")
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return encoder

    first, second = zip(*PAIRS, strict=True)
    labels = [float(index % 2) for index in range(len(PAIRS))]
    data = datasets.Dataset.from_dict({"first": first, "second": second, "label": labels})
    same_training(*(make, CosineSimilarityLoss, data, tmp_path, way), kind="SentenceTransformer")
