"""Golden digests of conversions: the cases, and what is recorded of a GGUF file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import hub, v4

if TYPE_CHECKING:
    from tests.support.gguf_file import GgufFile

DIRECTORY = Path(__file__).parents[1] / "golden_convert"
TYPES = ("F32", "BF16", "F16", "Q8_0")

MODEL_CARD = """---
license: mit
library_name: transformers
base_model:
- deepseek-ai/DeepSeek-V3-Base
language:
- en
- zh
tags:
- conversational
pipeline_tag: text-generation
datasets:
- openai/gsm8k
---
# A small one
"""


@dataclass(frozen=True)
class Case:
    """A checkpoint: its kind, the directory's name (general.* depend on it), and how it is stored.

    `arguments` are what our command has to be told to do as the peer does, `told` what the peer is told beside; `outer`
    is the class of a model that sees, inside which it is published.
    """

    kind: str
    directory: str
    tokenizer: str = "deepseek"
    card: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    outer: str = ""

    def write(self, parent: Path) -> Path:
        writer = v4.write if self.kind in v4.KINDS else hub.write
        place = parent / "text" if self.outer else parent / self.directory
        path = writer(place, self.kind, tokenizer=self.tokenizer, **self.options)
        if self.outer:
            path = hub.wrapped(path, parent / self.directory, self.outer)
        if self.card:
            (path / "README.md").write_text(MODEL_CARD, encoding="utf-8")
        return path


V4: dict[str, Any] = {"num_hidden_layers": 4, "n_routed_experts": 4, "num_hash_layers": 1}
SMALL: dict[str, Any] = {"num_hidden_layers": 2, "n_routed_experts": 4}
AS_THE_PEER = ("--compat", "llama.cpp")
ALONE, WITHOUT = (*AS_THE_PEER, "--mtp", "only"), (*AS_THE_PEER, "--mtp", "drop")
CASES: dict[str, Case] = {
    "v2lite": Case("v2lite", "DeepSeek-V2-Lite-Chat"),
    "v2": Case("v2", "deepseek-v2.5-tiny"),
    "v3": Case("v3", "DeepSeek-V3-0324", card=True),
    "v3fp8": Case("v3fp8", "DeepSeek-R1"),
    "v32": Case("v32", "DeepSeek-V3.2-Exp"),
    "v32fp8": Case("v32fp8", "v32fp8", "bundled"),
    "glm-lite": Case("glm-lite", "glm-lite", "bundled"),
    "glm-dsa": Case("glm-dsa", "glm-dsa", "bundled"),
    "glm-5.2": Case("glm-5.2", "glm-5.2", "bundled", options={"n_routed_experts": 4}),
    "youtu": Case("youtu", "Youtu-LLM-2B", "bundled", options={"num_hidden_layers": 2}),
    "mistral4": Case(
        "mistral4-fp8",
        "Mistral-Small-4-119B-2603",
        "bundled",
        options={"num_hidden_layers": 2, "n_routed_experts": 8},
        outer="Mistral3ForConditionalGeneration",
    ),
    "v3-f16": Case("v3-f16", "v3-f16", "bundled"),
    "v3-f32": Case("v3-f32", "v3-f32", "bundled"),
    "v3-tied": Case("v3-tied", "v3-tied", "bundled"),
    "v3-one-file": Case("v3", "v3-one-file", "bundled", options={"shard_bytes": None, "num_hidden_layers": 2}),
    "v3fp8-e8m0": Case("v3fp8-e8m0", "v3fp8-e8m0", "bundled"),
    "v4-flash": Case("v4-flash", "v4-flash", "bundled", options=V4, arguments=AS_THE_PEER),
    "v4-pro": Case("v4-pro", "v4-pro", "bundled", options=V4, arguments=AS_THE_PEER),
    "v4-mtp": Case(
        "v4-flash",
        "v4-flash",
        "bundled",
        options=V4 | {"compress_ratios": [0, 0, 4, 128, 0]},
        arguments=ALONE,
        told=("--mtp",),
    ),
    "v32-mtp": Case("v32", "v32", "bundled", options=SMALL, arguments=ALONE, told=("--mtp",)),
    "v32-no-mtp": Case("v32", "v32", "bundled", options=SMALL, arguments=WITHOUT, told=("--no-mtp",)),
}

Record = dict[str, Any]


def record_of(file: GgufFile) -> Record:
    """Metadata, and per tensor its shape, type and digest."""
    return {
        "metadata": file.comparable_metadata(),
        "tensors": {name: [list(t.ne), t.type, file.digest(name)] for name, t in file.tensors.items()},
    }


def save(case: str, records: dict[str, Record]) -> None:
    """One file per case; what all output types share is written once."""
    first = records[TYPES[0]]
    shared = {k: v for k, v in first["metadata"].items() if all(r["metadata"].get(k) == v for r in records.values())}
    own = {t: {k: v for k, v in r["metadata"].items() if k not in shared} for t, r in records.items()}
    tensors = {
        name: {"ne": ne, **{t: r["tensors"][name][1:] for t, r in records.items()}}
        for name, (ne, *_) in first["tensors"].items()
    }
    sections = {"metadata": shared, "metadata_by_type": own, "tensors": tensors}
    text = ",\n".join(f"{json.dumps(title)}: {_lines(entries)}" for title, entries in sections.items())
    (DIRECTORY / f"{case}.json").write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


def _lines(entries: dict[str, Any]) -> str:
    """JSON with one entry per line: short, and a difference shows which."""
    compact = {name: json.dumps(e, ensure_ascii=False, separators=(",", ":")) for name, e in entries.items()}
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in compact.items()) + "\n}"


def load(case: str) -> dict[str, Record]:
    """Output type → the record of the file that the peer wrote."""
    stored = json.loads((DIRECTORY / f"{case}.json").read_text(encoding="utf-8"))
    return {
        t: {
            "metadata": {**stored["metadata"], **stored["metadata_by_type"][t]},
            "tensors": {name: [entry["ne"], *entry[t]] for name, entry in stored["tensors"].items()},
        }
        for t in TYPES
    }
