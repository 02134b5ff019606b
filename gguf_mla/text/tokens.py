"""The tokens a proof runs over: a file of ids, a text, or the sample that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files.input import unreadable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gguf_mla.text.encoders import Encode

    Numbers = NDArray[np.int64]
    Integers = NDArray[Any]

# textwrap.py of CPython 3.11, under the Python Software Foundation License.
SAMPLE = Path(__file__).parent / "sample.txt"
LEAST = 8  # tokens


def read_tokens(text: Path | None, tokens: Path | None, encode: Encode, vocab: int) -> Numbers:
    """Return token ids, int64 [N].

    tokens     a .npy array of integers, or ids as text
    text       UTF-8, tokenized by `encode`; the sample when neither is given
    vocab      how many ids there are

    Raises InputError for a file that cannot be read, ids outside the vocabulary, and a text without a tokenizer.
    """
    file = tokens or text or SAMPLE
    ids = read_ids(tokens) if tokens else np.array(encode(_lines(read_text(file))), np.int64)
    if ids.size < LEAST:
        raise InputError("there is too little text", file=file, expected=f"{LEAST} tokens or more", found=ids.size)
    return within(ids, vocab, file)


def within(ids: Integers, vocab: int, file: Path) -> Numbers:
    """Return ids as int64; InputError for one that is outside the vocabulary."""
    if ids.size and (ids.min() < 0 or ids.max() >= vocab):
        raise InputError(
            "a token is outside the vocabulary",
            file=file,
            expected=f"0 to {vocab - 1}",
            found=f"{ids.min()} to {ids.max()}",
        )
    return np.array(ids, np.int64)


def read_ids(file: Path) -> Integers:
    """Return the ids in a file, a .npy array of integers or numbers as text; InputError where it holds none."""
    try:
        values = _stored(file) if file.suffix in (".npy", ".npz") else _written(file)
    except OSError as error:
        raise unreadable(file, error) from None
    except Exception as error:  # a damaged header fails in numpy's reader in many ways, tokenize.TokenError among them
        what = f"holds no token ids ({str(error).partition(chr(10))[0]:.80})"
        raise InputError(what, file=file, expected="a .npy of integers, or ids as text") from None
    if values.dtype.kind not in "iu" and values.size:
        raise InputError("holds no token ids", file=file, expected="integers", found=f"{values.dtype!s:.80}")
    return values.reshape(-1)


def _stored(file: Path) -> NDArray[Any]:
    """Return the array of a .npy file, mapped: a header that lies about its length then costs no memory."""
    with np.errstate(over="ignore"):
        return np.lib.format.open_memmap(file, mode="r")


def _written(file: Path) -> NDArray[Any]:
    return np.array([int(word) for word in re.split(r"[\s,\[\]]+", file.read_text("utf-8")) if word])


def read_text(file: Path) -> str:
    """Return a file's text as it stands, line ends included; InputError unless it is UTF-8."""
    try:
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", file=file) from None


def _lines(text: str) -> str:
    r"""Return a text with \n for every line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
