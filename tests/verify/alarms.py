"""False alarms, looked for exhaustively: right files of every kind, of which none may be called wrong. Run by hand:

    python -m tests.verify.alarms types legacy requantized families texts
    python -m tests.verify.alarms peer --quantizer llama-quantize

types        the bundled checkpoint in every type, with and without importance
peer         the same from a real llama-quantize, which nothing here installs; also --pure; through all levels
legacy       legacy files of many types, and their upgrades, for 4, 8 and 16 experts, against their checkpoints
requantized  files made finer or coarser than they were, and GGUF references coarser and finer than the file
families     a small random model of every family in Q8_0 and Q4_K_M, through all levels
texts        25 texts each of 60, 200 and 1000 characters of Python and English, and random ids, in three types

It prints a line per file or kind of text, and ends with status 1 if one was called wrong.
"""

from __future__ import annotations

import argparse
import email
import functools
import math
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla import ggtypes, open_gguf
from gguf_mla.forward import walk
from gguf_mla.forward.attention import FORMS
from gguf_mla.forward.layers import lookup
from gguf_mla.recipes import file_types
from gguf_mla.synthetic.shapes import FAMILIES
from gguf_mla.synthetic.small import write_small
from gguf_mla.text.tokens import read_tokens
from tests.support import hub
from tests.support.command import convert, gguf_mla
from tests.support.matrices import write_imatrix
from verify import opening
from verify.findings import Grade
from verify.job import Request, prove
from verify.levels import attention, logits
from verify.limits import Limits
from verify.measures import agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

LEGACY_TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
REQUANTIZED = (
    ("Q4_K_M", "Q8_0"), ("Q4_0", "Q8_0"), ("MXFP4_MOE", "Q8_0"), ("Q4_K_M", "Q6_K"), ("Q4_K_M", "Q5_K_M"),
    ("Q2_K", "Q4_K_M"), ("Q8_0", "Q6_K"), ("Q8_0", "Q4_K_M"), ("Q6_K", "Q4_K_M"), ("Q5_K_M", "Q4_K_M"),
    ("Q5_K_M", "Q3_K_M"), ("Q4_K_M", "Q3_K_M"), ("Q4_K_M", "Q4_K_S"),
)  # fmt: skip
REFERENCES = (("Q8_0", "F32"), ("Q8_0", "Q4_K_M"), ("Q4_K_M", "Q8_0"), ("Q2_K", "Q6_K"), ("Q4_K_M", "Q4_0"))
TEXT_TYPES = ("Q8_0", "Q4_K_M", "IQ2_XS")
TEXTS = 25
LENGTHS = (60, 200, 1000)
IDS = (8, 16, 32, 64, 128, 256, 512)


class Count:
    """What the proofs came to."""

    def __init__(self) -> None:
        self.grades: Counter[str] = Counter()

    def prove(self, reference: Path, candidate: Path, level: str = "weights", **options: Any) -> None:
        proof = prove(Request(reference, candidate, level, threads=2, **options))
        self.note(f"{reference.name} {candidate.name}", proof.grade, [finding.sentence for finding in proof.findings])

    def note(self, what: str, grade: str, sentences: list[str]) -> None:
        self.grades[grade] += 1
        print(f"{grade:12}{what}", *sentences[:2], sep="\n      " if grade == Grade.WRONG else "  ", flush=True)


def types(count: Count, directory: Path) -> None:
    """Every file type, with importance where it has use of it and without where it can do without."""
    plain = directory / "F32.gguf"
    convert(hub.BUNDLED, plain, "F32")
    imatrix = importance(plain, directory / "imatrix.gguf")
    for name in file_types.FILE_TYPES:
        for options in ((), ("--imatrix", imatrix)):
            out = directory / f"{name}{'-imatrix' if options else ''}.gguf"
            if gguf_mla("convert", hub.BUNDLED, out, "--type", name, "--quiet", *options).status == 0:
                count.prove(hub.BUNDLED, out)
                out.unlink()


def peer(count: Count, directory: Path, quantizer: str) -> None:
    """Every file type as another program makes it."""
    plain = directory / "F32.gguf"
    convert(hub.BUNDLED, plain, "F32")
    imatrix = importance(plain, directory / "imatrix.gguf")
    for name in file_types.FILE_TYPES:
        for options in ((), ("--pure",), ("--imatrix", imatrix), ("--pure", "--imatrix", imatrix)):
            words = [str(option) for option in options if option != imatrix]
            out = directory / f"{'-'.join(['peer', name, *words])}.gguf"
            done = subprocess.run([quantizer, *options, plain, out, name], capture_output=True, check=False)
            if done.returncode == 0:
                count.prove(hub.BUNDLED, out, "logits", chunks=1)
            else:
                print(f"{'not made':12}{out.name}  {done.stderr.splitlines()[-1:]}", flush=True)
            out.unlink(missing_ok=True)


def importance(file: Path, out: Path) -> Path:
    """An importance matrix as uneven as real ones are."""
    rng, entries = np.random.default_rng(3), {}
    for tensor in open_gguf(file).tensors.values():
        if len(tensor.shape) > 1:
            rows = math.prod(tensor.shape[:-2])
            sums = rng.lognormal(0, 1, (rows, tensor.shape[-1])).astype(np.float32)
            entries[tensor.name] = (sums, np.ones(rows, np.float32))
    write_imatrix(out, entries, datasets=[], chunk_count=1, chunk_size=512)
    return out


def legacy(count: Count, directory: Path) -> None:
    """Legacy files and their upgrades."""
    checkpoints = {8: hub.BUNDLED}
    for experts in (4, 16):
        options: dict[str, Any] = {"num_hidden_layers": 2, "n_routed_experts": experts, "num_experts_per_tok": 2}
        checkpoints[experts] = hub.write(directory / f"experts-{experts}", "v3", **options)
    for experts, checkpoint in checkpoints.items():
        for name, out in legacy_files(checkpoint, directory / f"of-{experts}", LEGACY_TYPES):
            up = out.with_name(f"up-{name}.gguf")
            insist("upgrade", out, up)
            count.prove(checkpoint, out)
            count.prove(checkpoint, up)
            count.prove(out, up)


def legacy_files(checkpoint: Path, directory: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Write a checkpoint as legacy files, as their type's rules had it for attn_kv_b; yield type and file."""
    directory.mkdir()
    convert(checkpoint, directory / "plain.gguf", "F32")
    insist("downgrade", directory / "plain.gguf", directory / "plain-legacy.gguf")
    for name in names:
        out = directory / f"legacy-{name}.gguf"
        insist("quantize", directory / "plain-legacy.gguf", out, name)
        yield name, out


def insist(job: str, *arguments: Any) -> None:
    answer = gguf_mla(job, *arguments, "--quiet")
    assert answer.status == 0, answer.output


def requantized(count: Count, directory: Path) -> None:
    """Files of files."""
    for name in sorted({name for pair in (*REQUANTIZED, *REFERENCES) for name in pair}):
        convert(hub.BUNDLED, directory / f"{name}.gguf", name)
    for first, second in REQUANTIZED:
        out = directory / f"{first}-{second}.gguf"
        insist("quantize", directory / f"{first}.gguf", out, second, "--allow-requantize")
        count.prove(hub.BUNDLED, out, "logits", chunks=1)
        count.prove(directory / f"{first}.gguf", out)
    for first, second in REFERENCES:
        count.prove(directory / f"{first}.gguf", directory / f"{second}.gguf")


def families(count: Count, directory: Path) -> None:
    """Random models of every family, whose predictions are not judged."""
    for family in FAMILIES:
        write_small(family, 20_000_000, directory / family)
        for name in ("Q8_0", "Q4_K_M"):
            out = directory / f"{family}-{name}.gguf"
            convert(directory / family, out, name)
            count.prove(directory / family, out, "logits", context=128, chunks=2)


# ---------------------------------------------------------------------------------------------------------- texts


def texts(count: Count, directory: Path) -> None:
    """Short texts: all of one kind in one pass, which is causal, and each judged by its own tokens."""
    for name in TEXT_TYPES:
        out = directory / f"{name}.gguf"
        plain = directory / "F32.gguf"
        convert(hub.BUNDLED, plain, "F32") if not plain.exists() else None
        options = ("--imatrix", importance(plain, directory / "imatrix.gguf")) if needs(name) else ()
        convert(hub.BUNDLED, out, name, *options)
        reference = opening.open_reference(hub.BUNDLED)
        candidate: Any = opening.open_candidate(out, reference)
        for kind, tokens in samples(directory):
            judge(count, f"{name}, {kind}", reference.weights, candidate, tokens)


def needs(name: str) -> bool:
    return name in ggtypes.types() and ggtypes.by_name(name).needs_importance


def samples(directory: Path) -> Iterator[tuple[str, list[np.ndarray]]]:
    rng = np.random.default_rng(11)
    for length in IDS:
        yield f"{length} random ids", [np.append(0, rng.integers(0, 2048, length - 1)) for _ in range(TEXTS)]
    sources = {
        "Python": sorted(Path(email.__file__).parent.glob("*.py")),
        "English": sorted((hub.REPOSITORY / "docs").glob("*.md")),
    }
    for language, files in sources.items():
        whole = "".join(path.read_text(encoding="utf-8") for path in files)
        for length in LENGTHS:
            starts = rng.integers(0, len(whole) - length, TEXTS)
            yield f"{length} characters of {language}", [ids(whole[s : s + length], directory) for s in starts]


def ids(text: str, directory: Path) -> np.ndarray:
    path = directory / "text.txt"
    path.write_text(text, encoding="utf-8")
    tokens = read_tokens(path, None, opening.open_reference(hub.BUNDLED).encode, 2048)
    return np.append(0, tokens[1:512])


def judge(count: Count, kind: str, reference: Any, candidate: Any, tokens: list[np.ndarray]) -> None:
    """Judge every text as a proof would, from the states of all of them."""
    longest = max(map(len, tokens))
    padded = np.stack([np.pad(each, (0, longest - len(each))) for each in tokens])
    both = Recorded(reference, candidate.weights, padded)
    scores = both.over()
    limits, said = Limits(), Counter[str]()
    for number, each in enumerate(tokens):
        found = both.findings(number, len(each), candidate, limits)
        found.append(logits.judge(scores(number, each), candidate.divergence(limits)))
        wrong = [finding.sentence for finding in found if finding and finding.grade is Grade.WRONG]
        untold = any(finding and finding.grade is Grade.CANNOT_TELL for finding in found)
        grade = Grade.WRONG if wrong else Grade.CANNOT_TELL if untold else Grade.RIGHT
        said[grade] += 1
        if wrong:
            print("     ", *wrong)
        count.grades[grade] += 1
    print(kind, dict(said), flush=True)


class Recorded(logits.Passes):
    """Both models, with what every layer adds kept, so that each text can be judged by itself."""

    def __init__(self, reference: Any, candidate: Any, tokens: np.ndarray) -> None:
        super().__init__(reference, candidate, tokens, FORMS["absorbed"], lambda _layer: "F32")
        self.added: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.attended: list[tuple[torch.Tensor, torch.Tensor]] = []

    def over(self) -> Callable[[int, np.ndarray], logits.Scores]:
        tokens = self.tokens
        first = tokens[:, : attention.TOKENS]
        hidden = lookup(self.reference, "token_embd.weight", first)
        for layer in range(self.reference.model.layers):
            ours, theirs = (walk.attention(side, layer, hidden, first) for side in (self.reference, self.candidate))
            self.attended.append((theirs, ours))
        state, own = (walk.embed(side, tokens) for side in (self.reference, self.candidate))
        for layer in range(self.reference.model.layers):
            after, own, judged = self.both(layer, state, own, state, tokens)
            self.added.append((judged - state, after - state))
            state = after
        ours, theirs = (walk.finish(side, each) for side, each in ((self.reference, state), (self.candidate, own)))

        def scores(number: int, each: np.ndarray) -> logits.Scores:
            part = np.s_[number : number + 1, : len(each)]
            return self.score(ours[part], theirs[part], self.reference.place.ids(each)[None])

        return scores

    def findings(self, number: int, length: int, candidate: Any, limits: Limits) -> list[Any]:
        found = []
        layers = range(self.reference.model.layers)
        for layer, (judged, expected) in zip([*layers, *layers], [*self.attended, *self.added], strict=True):
            names = [name for name in candidate.weights.file.tensors if name.startswith(f"blk.{layer}.")]
            measured = agreement(judged[number, :length], expected[number, :length])
            result = attention.LayerAgreement(layer, candidate.coarsest(names, limits), measured)
            found.append(attention.judge(result, limits, logits.LEVEL, "layer"))
        return found


PARTS: dict[str, Callable[[Count, Path], None]] = {
    part.__name__: part for part in (types, legacy, requantized, families, texts)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "peer"], default=list(PARTS))
    parser.add_argument("--quantizer", help="a llama-quantize, for `peer`")
    count, given = Count(), parser.parse_args()
    if given.quantizer:
        PARTS["peer"] = functools.partial(peer, quantizer=given.quantizer)
    for part in given.parts:
        with tempfile.TemporaryDirectory() as directory:
            PARTS[part](count, Path(directory))
    print(dict(count.grades))
    raise SystemExit(count.grades[Grade.WRONG] > 0)


if __name__ == "__main__":
    main()
