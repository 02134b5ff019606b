"""Texts to token ids by the package tokenizers: with a checkpoint's files, or with the tokens of a GGUF file."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import GgufMlaError, InputError
from gguf_mla.text import ranks
from gguf_mla.text.splitting import SPLITTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import PurePath

    from tokenizers import Tokenizer

    from gguf_mla.files.readable import Folder

Encode = Callable[[str], Sequence[int]]
CONTROL, USER_DEFINED = 3, 4  # token types of GGUF that are looked for in a text before it is cut
PREFIX = "tokenizer.ggml."


def of_folder(folder: Folder, *, special: bool = True) -> Encode:
    """Return what reads texts with a checkpoint's tokenizer.json, or with the ranks in its tiktoken.model.

    `special`: whether the names of control tokens in a text are those tokens, and not words.
    """
    names = folder.names()
    name = "tokenizer.json" if "tokenizer.json" in names or ranks.FILE not in names else ranks.FILE

    def build() -> Tokenizer:
        return _of_ranks(folder) if name == ranks.FILE else _of_json(folder.text(name))

    return _encoder(build, folder.path / name, special=special)


def of_gguf(metadata: Mapping[str, Any], file: PurePath, *, special: bool = True) -> Encode:
    """Return what reads texts with a GGUF file's tokens and merges, cut as its pre-tokenizer does."""
    return _encoder(lambda: _of_metadata(metadata, file), file, special=special)


def installed() -> bool:
    """Whether the package tokenizers is there."""
    try:
        return importlib.util.find_spec("tokenizers") is not None
    except ValueError:  # None among the loaded modules
        return False


def _encoder(build: Callable[[], Tokenizer], file: PurePath, *, special: bool) -> Encode:
    once = functools.cache(build)

    def encode(text: str) -> Sequence[int]:
        if not installed():
            raise InputError(
                "reading a text needs the package tokenizers", remedy="pip install tokenizers, or give --tokens"
            )
        try:
            tokenizer = once()
            tokenizer.encode_special_tokens = not special
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        except (GgufMlaError, MemoryError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exceptions, and panics, which are no Exceptions
            what = f"the package tokenizers cannot read a text with it ({error!s:.200})"
            raise InputError(what, file=file, remedy="Take that of the original model, or give --tokens") from None

    return encode


def _of_json(stated: str) -> Tokenizer:
    import tokenizers  # noqa: PLC0415 - optional

    tokenizer = tokenizers.Tokenizer.from_str(stated)
    tokenizer.no_truncation()  # the whole text is wanted, and nothing else
    tokenizer.no_padding()
    return tokenizer


def _of_ranks(folder: Folder) -> Tokenizer:
    bpe = ranks.bpe_of(ranks.read_ranks(folder.open(ranks.FILE)))
    return _byte_level(bpe.vocab, bpe.merges, (ranks.SPLIT,))


def _of_metadata(metadata: Mapping[str, Any], file: PurePath) -> Tokenizer:
    import tokenizers  # noqa: PLC0415 - optional

    name = metadata.get(PREFIX + "pre", "default")
    if metadata.get(PREFIX + "model") != "gpt2" or name not in SPLITTINGS:
        raise InputError(
            "how its tokenizer reads a text is not known here",
            file=file,
            expected=f"{PREFIX}model gpt2, and as {PREFIX}pre one of {', '.join(SPLITTINGS)}",
            found=f"{metadata.get(PREFIX + 'model')}, {name}",
            remedy="Give token ids with --tokens",
        )
    tokens, merges = (list(metadata.get(PREFIX + key) or ()) for key in ("tokens", "merges"))
    vocab = {token: number for number, token in reversed(list(enumerate(tokens)))}
    splitting = SPLITTINGS[name]
    tokenizer = _byte_level(vocab, merges, splitting.steps, whole=splitting.whole)
    types = metadata.get(PREFIX + "token_type") or ()
    looked_for = [(token, kind) for token, kind in zip(tokens, types, strict=False) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens(
        [tokenizers.AddedToken(token, normalized=False, special=kind == CONTROL) for token, kind in looked_for]
    )
    return tokenizer


def _byte_level(
    vocab: Mapping[str, int], merges: Sequence[str], steps: Sequence[str], *, whole: bool = False
) -> Tokenizer:
    """Return a byte-level BPE tokenizer; `whole` as in `Splitting`."""
    import tokenizers  # noqa: PLC0415 - optional

    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(dict(vocab), pairs, ignore_merges=whole))
    tokenizer.pre_tokenizer = splitter(steps)
    return tokenizer


def splitter(steps: Sequence[str]) -> Any:
    """Return the pre-tokenizer of the package tokenizers that cuts by these steps, and then into bytes."""
    from tokenizers import Regex, pre_tokenizers  # noqa: PLC0415 - optional

    splits = [pre_tokenizers.Split(Regex(step), "isolated") for step in steps]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
