"""Which types the tensors of an output get: the options of every job that encodes, and what they come to."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from gguf_mla.importance.matrix import Imatrix
    from gguf_mla.recipes import Overrides

_PATH = click.Path(path_type=Path)
_OPTIONS = (
    click.option(
        "--imatrix", "imatrix_files", type=_PATH, multiple=True, metavar="FILE",
        help="Importance matrix, GGUF or .dat; several are merged.",
    ),
    click.option(
        "--include-weights", "include", multiple=True, metavar="PART",
        help="Use importance only for tensors whose name contains PART.",
    ),
    click.option(
        "--exclude-weights", "exclude", multiple=True, metavar="PART",
        help="Use no importance for tensors whose name contains PART.",
    ),
    click.option(
        "--target-bpw", type=click.FloatRange(min=0, min_open=True), metavar="BITS",
        help="Instead of a type: choose types by measured error, BITS per weight in all.",
    ),
    click.option("--target-size", metavar="SIZE", help="Likewise, for a file of at most SIZE (200G; decimal)."),
    click.option("--pure", is_flag=True, help="Every tensor gets the file type's default type."),
    click.option(
        "--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
        help="The type of the tensors whose name matches; the first match wins.",
    ),
    click.option("--tensor-type-file", type=_PATH, metavar="FILE", help="A file of such settings."),
    click.option("--output-tensor-type", metavar="TYPE", help="The type of output.weight."),
    click.option("--token-embedding-type", metavar="TYPE", help="The type of token_embd.weight."),
    click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as it is."),
    click.option(
        "--compat", type=click.Choice(["llama.cpp"]), help="Choose as llama.cpp does even where our choice is better."
    ),
)  # fmt: skip


@dataclass(frozen=True)
class TypeOptions:
    """What `type_options` adds to a command."""

    imatrix_files: tuple[Path, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    target_bpw: float | None = None
    target_size: str | None = None
    pure: bool = False
    tensor_types: tuple[str, ...] = ()
    tensor_type_file: Path | None = None
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    compat: str | None = None

    @property
    def budgets(self) -> tuple[str, ...]:
        """The wanted sizes as the names of types."""
        bits = () if self.target_bpw is None else (f"{self.target_bpw:g}bpw",)
        return bits if self.target_size is None else (*bits, self.target_size)

    @property
    def overrides(self) -> Overrides:
        """The settings that change what a recipe says; InputError for one that cannot be read."""
        from gguf_mla.recipes import Overrides, parse_tensor_type, read_tensor_types  # noqa: PLC0415 - not for `--help`

        in_file = read_tensor_types(self.tensor_type_file) if self.tensor_type_file else ()
        return Overrides(
            pure=self.pure,
            tensor_types=(*map(parse_tensor_type, self.tensor_types), *in_file),
            output_tensor_type=self.output_tensor_type,
            token_embedding_type=self.token_embedding_type,
            leave_output_tensor=self.leave_output_tensor,
            compat=self.compat is not None,
        )

    def imatrix(self) -> Imatrix | None:
        """Return the importance files as one, None without any."""
        from gguf_mla.importance.matrix import STAND_INS, read_imatrix  # noqa: PLC0415 - not for `--help`

        if not self.imatrix_files:
            return None
        stand_ins = {} if self.compat else STAND_INS
        return read_imatrix(self.imatrix_files, include=self.include, exclude=self.exclude, stand_ins=stand_ins)


def type_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a click command, which gets them as one `types` argument."""

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        types = TypeOptions(**{name: arguments.pop(name) for name in TypeOptions.__dataclass_fields__})
        command(**arguments, types=types)

    return functools.reduce(lambda inner, option: option(inner), reversed(_OPTIONS), wrapped)
