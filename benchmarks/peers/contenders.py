"""Who runs against whom: engines with their options, and why one of them cannot run here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, NamedTuple

from .transformers_bert import Worker

PACKAGE = __package__


class Contender(NamedTuple):
    """Fields:
    name: as tables show it.
    engine: its module in `engines/`.
    packages: the distributions that it needs.
    options: what its engine is asked.
    precision: "fp32" or "int8", of the products.
    ours: bertfast, not a peer.
    tell_mkl: MKL is told that the processor is Intel's.
    batches, text: whether it takes loads of tensors, and the one of texts.
    """

    name: str
    engine: str
    packages: tuple[str, ...] = ("transformers",)
    options: Mapping[str, Any] = MappingProxyType({})
    precision: str = "fp32"
    ours: bool = False
    tell_mkl: bool = False
    batches: bool = True
    text: bool = True

    @property
    def module(self) -> str:
        return f"{PACKAGE}.engines.{self.engine}"

    @property
    def slug(self) -> str:
        """The name as a file's."""
        return self.name.lower().replace(",", "").replace(" ", "-")

    def takes(self, load: str) -> bool:
        return self.text if load.startswith("text-") else self.batches


def _precisions(
    name: str, engine: str, packages: tuple[str, ...], int8: tuple[str, ...] = ()
) -> list[Contender]:
    """The engine in fp32 and in int8, which needs more packages."""
    return [
        Contender(f"{name} fp32", engine, packages, {"precision": "fp32"}),
        Contender(f"{name} int8", engine, (*packages, *int8), {"precision": "int8"}, "int8"),
    ]


def _told(name: str, engine: str, packages: tuple[str, ...], **more: Any) -> list[Contender]:
    """The engine with MKL as it is, and with MKL told that the processor is Intel's."""
    plain = Contender(name, engine, packages, **more)
    return [plain, plain._replace(name=f"{name}, MKL told", tell_mkl=True)]


CONTENDERS = [
    Contender("bertfast", "ours", ours=True, text=False),
    Contender("bertfast prepacked", "ours", options={"prepack": True}, ours=True, text=False),
    Contender("bertfast int8", "ours", options={"quantize": "int8"}, precision="int8", ours=True, text=False),
    Contender("bertfast Encoder", "ours_encoder", (), ours=True, batches=False),
    *_told("transformers sdpa", "sdpa", ("transformers",)),
    *_told("torch.compile", "compiled", ("transformers",)),
    *_told("sentence-transformers", "sentence_transformers", ("sentence-transformers",), batches=False),
    *_precisions("ONNX Runtime", "onnx", ("transformers", "onnx", "onnxruntime")),
    *_precisions("OpenVINO", "openvino", ("transformers", "onnx", "openvino"), ("nncf",)),
    *_precisions("CTranslate2", "ctranslate2", ("transformers", "ctranslate2")),
]  # fmt: skip
# What outputs are compared with: never timed.
TRUTH = Contender("float64", "sdpa", options={"attention": "eager", "dtype": "float64"})


def absent(contender: Contender) -> str | None:
    """Why the contender cannot run here, or None."""
    for package in contender.packages:
        if version(package) is None:
            return f"{package} is not installed"
    return Worker.refusal() if contender.tell_mkl else None


def version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
