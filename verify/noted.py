"""What levels find, as plain data for the journal of a proof, and back: every number comes back the same."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from verify.levels.attention import LayerAgreement
from verify.levels.choice import ChoiceAgreement
from verify.levels.exact import Sameness, Way
from verify.levels.history import History
from verify.levels.logits import Scores
from verify.levels.weights import Position, TensorError
from verify.limits import Stage
from verify.measures import Agreement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gguf_mla.forward.choice import Chooser
    from gguf_mla.forward.place import Place
    from verify.comparison import Pair
    from verify.levels.judging import Judged

    Arrays = Mapping[str, NDArray[Any]]

SCORES = "scores"  # what the names of their arrays begin with


def of_judged(judged: Judged) -> dict[str, Any]:
    """Return the error of a tensor and what explains it."""
    error, found = judged.error, judged.history
    return {
        "values": error.values, "sums": error.sums.tolist(), "row_rms": error.row_rms, "special": error.special,
        "row": asdict(error.row_place), "peak": error.peak, "block": asdict(error.peak_place),
        "history": None if found is None else asdict(found),
    }  # fmt: skip


def error_of(noted: Mapping[str, Any], pair: Pair) -> TensorError:
    """Return the error that was noted of a pair."""
    return TensorError(
        pair.name, pair.candidate.stored, pair.nbytes, noted["values"], np.array(noted["sums"]), noted["row_rms"],
        Position(**noted["row"]), noted["peak"], Position(**noted["block"]), noted["special"], pair.part, pair,
    )  # fmt: skip


def history_of(noted: Mapping[str, Any]) -> History | None:
    """Return what was noted to explain a tensor."""
    found = noted["history"]
    return None if found is None else History(**{name: stage and Stage(**stage) for name, stage in found.items()})


def sameness_of(noted: Mapping[str, Any]) -> Sameness:
    """Return how much of a tensor was noted to be the encoder's."""
    first = noted["first"] and Position(**noted["first"])
    return Sameness(**{**noted, "way": Way(**noted["way"]), "first": first})


def layer_of(noted: Mapping[str, Any]) -> LayerAgreement:
    """Return the agreement that was noted of a layer."""
    choice = noted["choice"]
    chosen = choice and ChoiceAgreement(**{**choice, "scores": Agreement(**choice["scores"])})
    return LayerAgreement(**{**noted, "measured": Agreement(**noted["measured"]), "choice": chosen})


def of_scores(scores: Sequence[Scores]) -> dict[str, NDArray[Any]]:
    """Return the scores of the head and of the layers that predict as arrays [4, N]."""
    return {
        f"{SCORES}.{number}": np.stack([each.reference, each.candidate, each.kld, each.same_top])
        for number, each in enumerate(scores)
    }


def scores_of(arrays: Arrays, vocabulary: int) -> list[Scores]:
    """Return the scores that were noted."""
    found = (arrays[f"{SCORES}.{number}"] for number in range(sum(name.startswith(SCORES) for name in arrays)))
    return [Scores(each[0], each[1], each[2], each[3].astype(bool), vocabulary) for each in found]


def of_choosers(choosers: Mapping[str, Chooser]) -> dict[str, NDArray[Any]]:
    """Return what sequences attend to, [B, T, K], of the choosers that have chosen."""
    held = {name: list(chooser.chosen) for name, chooser in choosers.items() if len(chooser.chosen)}
    return {f"chosen.{name}": torch.stack(chosen).numpy(force=True) for name, chosen in held.items()}


def put_back(arrays: Arrays, choosers: Mapping[str, Chooser], place: Place) -> None:
    """Give choosers the choices that were noted."""
    for name, chooser in choosers.items():
        chooser.chosen = [place.ids(each) for each in arrays.get(f"chosen.{name}", ())]
