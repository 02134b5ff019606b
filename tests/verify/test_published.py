"""The judge's own table of models beside the converter's: two readings that must come to the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gguf_mla.errors import InputError
from gguf_mla.families import family_of
from gguf_mla.forward.of_config import model_of_config
from gguf_mla.sources.config import Config
from tests.support import hub
from tests.support.kinds import KINDS
from verify.opening import open_reference
from verify.published import ARCHITECTURES, CLASSES, engine_differences

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATIONS: list[tuple[str, dict[str, Any], int]] = [
    *(
        (kind, {}, {"v2": 1, "glm-lite": 1, "glm-dsa": 1, "glm-5.2": 1, "kimi": 1, "kimi-int4": 1}.get(kind, 0))
        for kind in KINDS
    ),
    ("v3", {"num_hidden_layers": 26}, 1),
    ("v3", {"num_hidden_layers": 27, "rms_norm_eps": 1e-5}, 2),
    ("v2", {"topk_group": 4}, 0),
    ("kimi", {"rope_scaling": {**KINDS["kimi"].config["rope_scaling"], "beta_slow": 2}}, 2),
]


def config(kind: str, directory: Path, changes: dict[str, Any]) -> Config:
    return Config(hub.config_of(kind, "bundled", **changes), directory / "config.json")


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_one_architecture(name: str, tmp_path: Path) -> None:
    family = family_of(Config({"architectures": [name]}, tmp_path))
    assert (family.architecture, bool(family.bos_first)) == (CLASSES[name].architecture, CLASSES[name].bos_first)


def test_no_class_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        family_of(Config({"architectures": ["Other"]}, tmp_path))
    assert set(str(error.value.expected).split(" or ")) == set(CLASSES)
    assert ARCHITECTURES == ("deepseek2", "deepseek32", "glm-dsa", "mistral4", "deepseek4")


@pytest.mark.parametrize(("kind", "changes", "count"), CONFIGURATIONS)
def test_both_warn_of_the_same(kind: str, changes: dict[str, Any], count: int, tmp_path: Path) -> None:
    read = config(kind, tmp_path, changes)
    found = list(engine_differences(model_of_config(read)))
    assert len(found) == count
    assert found == family_of(read).warnings(read)


@pytest.mark.parametrize("listed", [["Other"], [], None, "DeepseekV3ForCausalLM", [["nested"]]])
def test_an_unknown_class_is_refused(listed: Any, tmp_path: Path) -> None:
    directory = hub.write(
        tmp_path / "model", "v3", num_hidden_layers=1, n_routed_experts=4, model_type=None, architectures=listed
    )
    with pytest.raises(InputError, match=r"a model of this class cannot be verified.*DeepseekV3ForCausalLM"):
        open_reference(directory)


def test_an_unknown_rope_scaling_is_refused(tmp_path: Path) -> None:
    scaling = {"type": "dynamic", "factor": 4.0}
    directory = hub.write(tmp_path / "model", "v3", num_hidden_layers=1, n_routed_experts=4, rope_scaling=scaling)
    with pytest.raises(InputError, match=r"type cannot be used.*yarn or linear or default.*dynamic"):
        open_reference(directory)
