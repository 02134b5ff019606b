"""The tokens a proof runs over: a file of ids, a text, or the sample that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gguf_mla.errors import InputError
from gguf_mla.files.input import unreadable
from gguf_mla.text import ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from gguf_mla.files.readable import Folder

    Numbers = NDArray[np.int64]

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
    ids = _ids(tokens) if tokens else np.append([] if bos is None else [bos], _tokenized(file, folder)).astype(int)
    if ids.size < LEAST:
        raise InputError("there is too little text", file=file, expected=f"{LEAST} tokens or more", found=ids.size)
    if ids.min() < 0 or ids.max() >= vocab:
        raise InputError(
            "a token is outside the vocabulary",
            file=file,
            expected=f"0 to {vocab - 1}",
            found=f"{ids.min()} to {ids.max()}",
        )
    return ids


def _ids(file: Path) -> Numbers:
    try:
        if file.suffix == ".npy":
            values = np.load(file, allow_pickle=False).reshape(-1)
        else:
            values = np.array([int(word) for word in re.split(r"[\s,\[\]]+", file.read_text("utf-8")) if word])
    except OSError as error:
        raise unreadable(file, error) from None
    except (ValueError, EOFError) as error:
        raise InputError(
            f"holds no token ids ({error})", file=file, expected="a .npy of integers, or ids as text"
        ) from None
    if values.dtype.kind not in "iu" and values.size:
        raise InputError("holds no token ids", file=file, expected="integers", found=values.dtype)
    ids: Numbers = values.astype(np.int64)
    return ids


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
    return np.array(_tokenizer(folder).encode(text, add_special_tokens=False).ids, np.int64)


def _tokenizer(folder: Folder) -> Tokenizer:
    import tokenizers  # noqa: PLC0415 - optional

    names = folder.names()
    if "tokenizer.json" in names or ranks.FILE not in names:
        return tokenizers.Tokenizer.from_str(folder.text("tokenizer.json"))
    bpe = ranks.bpe_of(ranks.read_ranks(folder.open(ranks.FILE)))
    merges = [(first, second) for first, _, second in (merge.partition(" ") for merge in bpe.merges)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(bpe.vocab, merges))
    pre = tokenizers.pre_tokenizers
    split = pre.Split(tokenizers.Regex(ranks.SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    return tokenizer
