"""The tokens a proof runs over: a file of ids, a text, or the sample that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.files.input import unreadable
from gguf_mla.text import ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from gguf_mla.files.readable import Folder

    Numbers = NDArray[np.int64]
    Integers = NDArray[Any]

# textwrap.py of CPython 3.11, under the Python Software Foundation License.
SAMPLE = Path(__file__).parent / "sample.txt"
LEAST = 8  # tokens


def read_tokens(text: Path | None, tokens: Path | None, folder: Folder | None, vocab: int, bos: int | None) -> Numbers:
    """Return token ids, int64 [N].

    tokens     a .npy array of integers, or ids as text
    text       UTF-8, tokenized by the tokenizer files in `folder`, after `bos` where the model wants one; the sample
               when neither is given
    folder     of the checkpoint; None for a GGUF file, which has no such files
    vocab      how many ids there are

    Raises InputError for a file that cannot be read, ids outside the vocabulary, and a text without a tokenizer.
    """
    file = tokens or text or SAMPLE
    before = np.array([] if bos is None else [bos], np.int64)
    ids = _ids(tokens) if tokens else np.append(before, _tokenized(file, folder))
    if ids.size < LEAST:
        raise InputError("there is too little text", file=file, expected=f"{LEAST} tokens or more", found=ids.size)
    if ids.min() < 0 or ids.max() >= vocab:
        raise InputError(
            "a token is outside the vocabulary",
            file=file,
            expected=f"0 to {vocab - 1}",
            found=f"{ids.min()} to {ids.max()}",
        )
    return np.array(ids, np.int64)


def _ids(file: Path) -> Integers:
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


def _tokenized(file: Path, folder: Folder | None) -> Numbers:
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", file=file) from None
    if folder is None:
        raise InputError(
            "a GGUF file as reference has no tokenizer.json to read a text with",
            remedy="Give token ids with --tokens",
        )
    try:
        import tokenizers  # noqa: PLC0415, F401 - optional
    except ImportError:
        raise InputError(
            "reading a text needs the package tokenizers", remedy="pip install 'gguf-mla[verify]', or give --tokens"
        ) from None
    return np.array(_encoded(text, folder), np.int64)


def _encoded(text: str, folder: Folder) -> list[int]:
    names = folder.names()
    name = "tokenizer.json" if "tokenizer.json" in names or ranks.FILE not in names else ranks.FILE
    stated = folder.text(name) if name == "tokenizer.json" else None
    try:
        tokenizer = _of_ranks(folder) if stated is None else _of_json(stated)
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except (GgufMlaError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and panics, which are no Exceptions
        what = f"the package tokenizers cannot read a text with it ({error!s:.200})"
        raise InputError(what, file=folder.path / name, remedy="Download it again, or give --tokens") from None


def _of_json(stated: str) -> Tokenizer:
    import tokenizers  # noqa: PLC0415 - optional

    tokenizer = tokenizers.Tokenizer.from_str(stated)
    tokenizer.no_truncation()  # the whole text is wanted, and nothing else
    tokenizer.no_padding()
    return tokenizer


def _of_ranks(folder: Folder) -> Tokenizer:
    import tokenizers  # noqa: PLC0415 - optional

    bpe = ranks.bpe_of(ranks.read_ranks(folder.open(ranks.FILE)))
    merges = [(first, second) for first, _, second in (merge.partition(" ") for merge in bpe.merges)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(bpe.vocab, merges))
    pre = tokenizers.pre_tokenizers
    split = pre.Split(tokenizers.Regex(ranks.SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer
