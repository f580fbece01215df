"""Where public sets are, and the SHA-256 of each file."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """A file that is fetched.

    Fields:
        address: where it is. sha256: of its bytes.
        target: where it goes below the folder of the data; of a zip archive the folder that it holds, too.
    """

    address: str
    sha256: str
    target: str


_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
_GLUE = "https://dl.fbaipublicfiles.com/glue/data"
_SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data"
_SWAG = "https://raw.githubusercontent.com/rowanz/swagaf/master/data"
MRPC = "glue/MRPC/"  # made of these files by fetch.py
_MNLI = (
    Source(
        f"{_GLUE}/MNLI.zip",
        "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
        "glue/MNLI",
    ),
    Source(
        f"{_GLUE}/AX.tsv",
        "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd",
        "glue/diagnostic/diagnostic.tsv",
    ),
)
# The hashes are those that Hugging Face's datasets (glue, swag), TensorFlow Datasets (squad, glue) and ParlAI (squad)
# have on record.
SETS: dict[str, tuple[Source, ...]] = {
    "squad": (
        Source(
            f"{_SQUAD}/train-v1.1.json",
            "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
            "squad/train-v1.1.json",
        ),
        Source(
            f"{_SQUAD}/dev-v1.1.json",
            "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
            "squad/dev-v1.1.json",
        ),
        Source(
            f"{_SQUAD}/train-v2.0.json",
            "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
            "squad/train-v2.0.json",
        ),
        Source(
            f"{_SQUAD}/dev-v2.0.json",
            "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
            "squad/dev-v2.0.json",
        ),
    ),
    "mnli": _MNLI,
    "glue": (
        *_MNLI,
        Source(
            f"{_GLUE}/CoLA.zip",
            "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
            "glue/CoLA",
        ),
        Source(
            f"{_GLUE}/SST-2.zip",
            "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
            "glue/SST-2",
        ),
        Source(
            f"{_GLUE}/STS-B.zip",
            "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
            "glue/STS-B",
        ),
        Source(
            f"{_GLUE}/QQP-clean.zip",
            "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
            "glue/QQP",
        ),
        Source(
            f"{_GLUE}/QNLIv2.zip",
            "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
            "glue/QNLI",
        ),
        Source(
            f"{_GLUE}/RTE.zip",
            "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
            "glue/RTE",
        ),
        Source(
            f"{_GLUE}/WNLI.zip",
            "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
            "glue/WNLI",
        ),
        Source(
            f"{_SENTEVAL}/msr_paraphrase_train.txt",
            "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
            f"{MRPC}msr_paraphrase_train.txt",
        ),
        Source(
            f"{_SENTEVAL}/msr_paraphrase_test.txt",
            "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
            f"{MRPC}msr_paraphrase_test.txt",
        ),
        Source(
            f"{_GLUE}/mrpc_dev_ids.tsv",
            "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
            f"{MRPC}mrpc_dev_ids.tsv",
        ),
    ),
    "swag": (
        Source(
            f"{_SWAG}/train.csv",
            "5748b51126ac255c5a6f26e1ba473b51116d6c822aeb25e63ecba282c9d0e610",
            "swag/train.csv",
        ),
        Source(
            f"{_SWAG}/val.csv",
            "c0497b2cd7f3e6b7df995524b1853f62285d60d110d659b19545ca80b2903234",
            "swag/val.csv",
        ),
    ),
}
