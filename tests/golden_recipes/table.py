"""Golden choices: which of them there are, and their compact form on disk.

On disk a run is called "FILE_TYPE", then "+imatrix", then ", options". Its choice is the most frequent type under "*",
and for each other type the tensors that have it, layers as ranges; null where llama-quantize refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_mla.recipes import FILE_TYPES, Overrides
from tests.golden_recipes.models import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable

DIRECTORY = Path(__file__).parent
Types = dict[str, str]  # of every tensor, by name


@dataclass(frozen=True)
class Options:
    """Options of llama-quantize, and the same as we call them."""

    arguments: tuple[str, ...] = ()
    ours: dict[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> Overrides:
        return Overrides(**self.ours, compat=True)


def _types(*pairs: tuple[str, str]) -> Options:
    arguments = [word for pattern, kind in pairs for word in ("--tensor-type", f"{pattern}={kind}")]
    return Options(tuple(arguments), {"tensor_types": pairs})


OPTIONS: dict[str, Options] = {
    "": Options(),
    "pure": Options(("--pure",), {"pure": True}),
    "leave output": Options(("--leave-output-tensor",), {"leave_output_tensor": True}),
    "output type": Options(("--output-tensor-type", "q5_0"), {"output_tensor_type": "q5_0"}),
    "embedding type": Options(("--token-embedding-type", "IQ4_NL"), {"token_embedding_type": "IQ4_NL"}),
    "first match": _types(("attn_k_b", "Q8_0"), ("attn_.*_b", "BF16"), (r"blk\.[12]\.ffn_down", "Q5_K")),
    "capitals and norms": _types((r"BLK\.0\..*OUTPUT", "f16"), ("norm", "q4_0"), ("gate_inp", "q4_0")),
    "misfit": _types(("attn_k_b", "q6_K"), ("embd", "iq3_s")),
    "everything": _types((".", "tq1_0")),
    "pure but one": Options(
        ("--pure", "--tensor-type", "exps=q4_0"), {"pure": True, "tensor_types": (("exps", "q4_0"),)}
    ),
    "all at once": Options(
        ("--output-tensor-type", "f16", "--token-embedding-type", "q4_1", "--tensor-type", "output=q5_1"),
        {"output_tensor_type": "f16", "token_embedding_type": "q4_1", "tensor_types": (("output", "q5_1"),)},
    ),
}
WITH_OPTIONS = {"v3", "v3-tied", "legacy", "v32-8-experts"}
FEW_TYPES = ("F16", "COPY", "Q8_0", "Q4_K_M", "IQ2_XS", "IQ3_M", "MXFP4_MOE", "TQ1_0")


@dataclass(frozen=True)
class Case:
    """One run of llama-quantize."""

    model: str
    target: str
    importance: bool = False
    options: str = ""

    @property
    def key(self) -> str:
        return f"{self.target}{'+imatrix' if self.importance else ''}{', ' if self.options else ''}{self.options}"

    @property
    def without_importance(self) -> Case:
        return replace(self, importance=False)


def cases() -> list[Case]:
    """Every model with every file type, with and without importance; some with every option."""
    plain = [Case(m, t, importance) for m in MODELS for t in FILE_TYPES for importance in (False, True)]
    asked = [Case(m, t, False, o) for m in MODELS if m in WITH_OPTIONS for t in FEW_TYPES for o in OPTIONS if o]
    return plain + asked


@dataclass(frozen=True)
class Answer:
    """What llama-quantize said: types by name, None if it refused; whether it asked for an importance file."""

    types: Types | None
    needs_importance: bool = False


class Table:
    """All answers for a model."""

    def __init__(self, answers: dict[str, Answer]) -> None:
        self.answers = answers

    @classmethod
    def load(cls, model: str, names: Iterable[str]) -> Table:
        """Read a model's table; `names` are all of its tensors."""
        record = json.loads((DIRECTORY / f"{model}.json").read_text(encoding="utf-8"))
        needing = set(record["needs importance"])
        kept = unpack(record["kept"], names)
        choices = record["choices"]
        for case in (case for case in cases() if case.model == model):
            choices.setdefault(case.key, choices[case.without_importance.key])
        return cls({k: Answer(c and {**unpack(c, names), **kept}, k in needing) for k, c in choices.items()})

    def save(self, model: str) -> None:
        """Write one run per line; what is never quantized only once, and what importance does not change not again."""
        known = [answer.types for answer in self.answers.values() if answer.types is not None]
        kept = {name: kind for name, kind in known[0].items() if all(types[name] == kind for types in known)}
        packed = {
            case.key: pack({n: t for n, t in types.items() if n not in kept} if types else None)
            for case in cases()
            if case.model == model
            for types in [self.answers[case.key].types]
            if not (case.importance and types == self.answers[case.without_importance.key].types)
        }
        needing = sorted(key for key, answer in self.answers.items() if answer.needs_importance)
        lines = ",\n".join(f"{_dense(key)}:{_dense(value)}" for key, value in packed.items())
        head = f'"kept":{_dense(pack(kept, "-"))},\n"needs importance":{_dense(needing)}'
        (DIRECTORY / f"{model}.json").write_text(f'{{{head},\n"choices":{{\n{lines}\n}}}}\n', encoding="utf-8")


def _dense(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def pack(types: Types | None, most: str = "") -> dict[str, Any] | None:
    """The compact form; `most` is the type that is not spelled out, by default the most frequent one."""
    if types is None:
        return None
    most = most or Counter(types.values()).most_common(1)[0][0]
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, kind in types.items():
        if kind != most:
            number, rest = _parted(name)
            layers[kind, rest].append(number)
    spelled: dict[str, list[str]] = defaultdict(list)
    for (kind, rest), numbers in layers.items():
        spelled[kind].append(rest if numbers == [-1] else f"blk.{_ranges(numbers)}.{rest}")
    return {"*": most, **spelled}


def _parted(name: str) -> tuple[int, str]:
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (-1, name)


def unpack(packed: dict[str, Any], names: Iterable[str]) -> Types:
    types = {} if packed["*"] == "-" else dict.fromkeys(names, packed["*"])
    spelled = {kind: entries for kind, entries in packed.items() if kind != "*"}
    return {**types, **{name: kind for kind, entries in spelled.items() for e in entries for name in _expand(e)}}


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] → "1-3,7"."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def _expand(entry: str) -> Iterable[str]:
    found = re.fullmatch(r"blk\.([\d,-]+)\.(.+)", entry)
    if not found:
        return [entry]
    spans = [span.split("-") for span in found[1].split(",")]
    return [f"blk.{n}.{found[2]}" for span in spans for n in range(int(span[0]), int(span[-1]) + 1)]
