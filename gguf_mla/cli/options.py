"""Options that several commands share, as data: a field of a dataclass is the click option of the same name."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_mla.cli import numbers
from gguf_mla.cli.input_path import InputPath

if TYPE_CHECKING:
    from gguf_mla.files.readable import AnyPath
    from gguf_mla.sources.checkpoint import Choices

PATH = click.Path(path_type=Path)
CHECKPOINT, GGUF, EITHER = InputPath("checkpoint"), InputPath("gguf"), InputPath("either")
SMALL, TYPES = InputPath("small"), InputPath("types")
OUT = click.Path()  # a text: whether it ends in a slash matters
THREADS: dict[str, Any] = {"type": numbers.Whole(numbers.THREADS), "help": "Worker threads  [default: all cores]"}
DEVICE: dict[str, Any] = {
    "show_default": True,
    "metavar": "NAME",
    "help": "Where to compute: cpu, cuda (all GPUs) or cuda:N; the result is the same.",
}
PAD_VOCAB: dict[str, Any] = {
    "is_flag": True,
    "help": "Rows of the embeddings beyond vocab_size are padding: keep them as tokens that are never used.",
}


THREADS_ENGINE, RAY = "threads", "ray"
ENGINE: dict[str, Any] = {
    "type": click.Choice([THREADS_ENGINE, RAY]),
    "show_default": True,
    "help": "Who does the work: threads of this process, or a Ray cluster whose machines share a folder.",
}
ADDRESS: dict[str, Any] = {
    "metavar": "ADDRESS",
    "help": "With --engine ray: the cluster's  [default: RAY_ADDRESS, or a cluster of this machine alone]",
}


def _spool(_ctx: click.Context, _param: click.Parameter, size: str | None) -> str | None:
    from gguf_mla.remote import spool  # noqa: PLC0415 - help needs none of it

    spool.use(size)
    return size


SPOOL: dict[str, Any] = {
    "type": numbers.Size(),
    "is_eager": True,  # before anything is opened
    "callback": _spool,
    "metavar": "SIZE",
    "help": "Keep what is read from the hub on the disk, at most SIZE of it (200G), for whatever reads it next.",
}
OVERRIDE_KV: dict[str, Any] = {
    "multiple": True,
    "metavar": "KEY=TYPE:VALUE",
    "help": "Set a metadata value of TYPE int, float, bool or str, which has to be the key's. Repeatable.",
}


def option(default: Any, *flags: str, **settings: Any) -> Any:
    """Return a dataclass field with its default, its flags, and what else click is to know of the option."""
    return field(default=default, metadata={"flags": flags, "settings": settings})


def click_options(group: type[Any]) -> list[click.Option]:
    """Return the options of a dataclass."""
    return [
        click.Option([*found.metadata["flags"], found.name], default=found.default, **found.metadata["settings"])
        for found in fields(group)
    ]


@dataclass(frozen=True)
class ReadingOptions:
    """How a checkpoint is read where it can be read in more than one way."""

    weights: str | None = option(
        None, "--weights", metavar="PATTERN",
        help="The .safetensors files that hold the weights, where it is not clear which do.",
    )  # fmt: skip
    prefix: str | None = option(
        None, "--prefix", metavar="TEXT",
        help="What the tensors' names begin with, where there is more than one language model.",
    )  # fmt: skip
    settings: tuple[str, ...] = option(
        (), "--set", multiple=True, metavar="KEY=VALUE",
        help="A value that counts instead of config.json's: n_group=1, rope_scaling.mscale=1. Repeatable.",
    )  # fmt: skip

    @property
    def choices(self) -> Choices:
        """The same as what opens a checkpoint takes it; InputError for a setting that cannot be read."""
        from gguf_mla.sources.checkpoint import Choices  # noqa: PLC0415 - help needs none of it
        from gguf_mla.sources.recognise import settings  # noqa: PLC0415 - as above

        return Choices(self.weights, self.prefix, settings.parse(self.settings))


@dataclass(frozen=True)
class TypeOptions:
    """Which types the tensors of an output get."""

    imatrix_files: tuple[Path, ...] = option(
        (), "--imatrix", type=SMALL, multiple=True, metavar="FILE",
        help="Importance matrix, GGUF or .dat, or hf://OWNER/NAME/FILE; several are merged.",
    )  # fmt: skip
    include: tuple[str, ...] = option(
        (), "--include-weights", multiple=True, metavar="PART",
        help="Use importance only for tensors whose name contains PART.",
    )  # fmt: skip
    exclude: tuple[str, ...] = option(
        (), "--exclude-weights", multiple=True, metavar="PART",
        help="Use no importance for tensors whose name contains PART.",
    )  # fmt: skip
    unseen: str = option(
        "ones", "--unseen", type=click.Choice(["ones", "layer-mean"]), show_default=True,
        help="The importance of an expert that no token of the text reached: all 1, or the mean of its layer's others.",
    )  # fmt: skip
    target_bpw: float | None = option(
        None, "--target-bpw", type=numbers.Real(0.01, 64), metavar="BITS",
        help="A file whose types are chosen by measured error, BITS per weight in all; beside a type, one file more.",
    )  # fmt: skip
    target_size: str | None = option(
        None, "--target-size", type=numbers.Size(letter=True), metavar="SIZE",
        help="Likewise, for a file of at most SIZE (200G, 186GiB).",
    )  # fmt: skip
    pure: bool = option(False, "--pure", is_flag=True, help="Every tensor gets the file type's default type.")
    tensor_types: tuple[str, ...] = option(
        (), "--tensor-type", multiple=True, metavar="REGEX=TYPE",
        help="The type of the tensors whose name matches; the first match wins.",
    )  # fmt: skip
    tensor_type_file: Path | None = option(  # noqa: RUF009 - it returns a field
        None, "--tensor-type-file", type=PATH, metavar="FILE", help="A file of such settings."
    )
    types_from: AnyPath | None = option(  # noqa: RUF009 - it returns a field
        None, "--types-from", type=TYPES, metavar="FILE",
        help="Every tensor's type as in this GGUF file, OWNER/NAME:TAG, or .recipe file of REGEX=TYPE lines.",
    )  # fmt: skip
    output_tensor_type: str | None = option(
        None, "--output-tensor-type", metavar="TYPE", help="The type of output.weight."
    )
    token_embedding_type: str | None = option(
        None, "--token-embedding-type", metavar="TYPE", help="The type of token_embd.weight."
    )
    leave_output_tensor: bool = option(
        False, "--leave-output-tensor", is_flag=True, help="Leave output.weight as it is."
    )
    no_fallback: bool = option(
        False, "--no-fallback", is_flag=True, help="Refuse to give a tensor another type where its rows do not fit."
    )
    compat: str | None = option(
        None, "--compat", type=click.Choice(["llama.cpp"]),
        help="Choose as llama.cpp does even where our choice is better.",
    )  # fmt: skip

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this machine that are read to choose types, importance among them."""
        others = (self.tensor_type_file, self.types_from)
        return (*self.imatrix_files, *(path for path in others if isinstance(path, Path)))

    @property
    def budgets(self) -> tuple[str, ...]:
        """The wanted sizes as the names of types."""
        bits = () if self.target_bpw is None else (f"{self.target_bpw:g}bpw",)
        return bits if self.target_size is None else (*bits, self.target_size)


@dataclass(frozen=True)
class RunOptions:
    """How to run: the options of every command that writes GGUF files."""

    split_max_size: str | None = option(
        None, "--split-max-size", type=numbers.Size(), metavar="SIZE",
        help="Write several files of at most SIZE of tensors each (48G, 500M, 8GiB); their heads come on top.",
    )  # fmt: skip
    split_max_tensors: int | None = option(
        None, "--split-max-tensors", type=numbers.Whole(numbers.COUNT),
        help="Write several files of at most so many tensors.",
    )  # fmt: skip
    no_tensor_first_split: bool = option(
        False, "--no-tensor-first-split", is_flag=True, help="When splitting, leave the first file without tensors."
    )
    threads: int | None = option(None, "--threads", **THREADS)
    device: str = option("cpu", "--device", **DEVICE)
    overwrite: bool = option(False, "--overwrite", is_flag=True, help="Replace an output that exists.")
    no_resume: bool = option(
        False, "--no-resume", is_flag=True, help="Start over instead of going on with an unfinished output."
    )
    checksums: bool = option(
        False, "--checksums", is_flag=True, help="Write OUT.sha256 too; `inspect --verify` checks it."
    )
    verify_source: bool = option(
        False, "--verify-source", is_flag=True, help="First compare the inputs with the hub's own SHA-256."
    )
    allow_unverified: bool = option(
        False,
        "--allow-unverified",
        is_flag=True,
        help="With --verify-source: accept what the hub does not vouch for.",
    )
    bandwidth: str | None = option(
        None, "--bandwidth", type=numbers.Size(), metavar="SIZE",
        help="Read from the hub, and send to it, at most SIZE a second (50M).",
    )  # fmt: skip
    engine: str = option(THREADS_ENGINE, "--engine", **ENGINE)
    address: str | None = option(None, "--address", **ADDRESS)
    spool: str | None = option(None, "--spool", **SPOOL)
    upload: str | None = option(
        None, "--upload", metavar="PLACE",
        help="Send each file when it is complete, drop it here, and publish all at once: to OWNER/NAME on the hub, or "
        "to the URL of a folder in an object store (s3://BUCKET/FOLDER).",
    )  # fmt: skip
    private: bool = option(False, "--private", is_flag=True, help="With --upload: a new repository is private.")
    keep: bool = option(False, "--keep", is_flag=True, help="With --upload: keep the files here, too.")
    verdicts: tuple[Path, ...] = option(
        (), "--verdict", type=PATH, multiple=True, metavar="FILE",
        help="With --upload: what `verify --json` has printed of the same bytes, for the repository's page.",
    )  # fmt: skip
    timings: bool = option(False, "--timings", is_flag=True, help="Show where the time went.")
    dry_run: bool = option(False, "--dry-run", is_flag=True, help="Show the plan and write nothing.")
    quiet: bool = option(
        False, "--quiet", is_flag=True, help="No progress and no summary; what is asked for is printed."
    )
    as_json: bool = option(False, "--json", is_flag=True, help="Print the plan or the result as JSON.")
