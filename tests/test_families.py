"""Peculiar families, tiny, train and export to what plain PEFT scores the same; `make families` does so for all."""

from pathlib import Path

import pytest
from families import TOLERANCE, check_family
from tiny_models import save_text

from contextlora.adapters import AdaptedModel, AdapterConfig
from contextlora.backbones.cut import CutModel
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.load import load_backbone
from contextlora.commands.train import _note_experts
from contextlora.graph import RankPartition
from contextlora.tasks.prompts import Prompt

PECULIAR = {
    "Jamba": "row of its own",  # a second forward loses its states
    "Qwen3-Next": "row of its own",  # no gradient through its states
    "LFM2": "second forward",
    "Mamba": "row of its own",
    "GPT-OSS": "second forward",
    "BLOOM": "second forward",
    "Qwen2.5-VL": "row of its own",
    "Qwen3-VL": "row of its own",
    "LLaVA-Next": "packed",
    "Idefics3": "packed",
    "PaliGemma": "second forward",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", PECULIAR)
def test_a_family_trains_and_exports(family: str, tmp_path: Path):
    found = check_family(family, tmp_path, "word")
    assert found.off <= TOLERANCE
    assert found.moved > 0.1
    assert PECULIAR[family] in found.way


def test_a_model_that_reads_padding_is_refused(tmp_path: Path):
    with pytest.raises(BackboneError, match="RecurrentGemmaForCausalLM reads padding as if it were words"):
        check_family("RecurrentGemma", tmp_path, "letter")


def test_options_in_rows_of_their_own_are_no_layer_pipeline(tmp_path: Path):
    save_text("Jamba", tmp_path)
    backbone = load_backbone(str(tmp_path), dtype="float32")
    batch = backbone.encode([Prompt("a", "sees red ?", None, ("main bridge", "river"), 0)])
    assert batch.inputs["input_ids"].shape[0] == 2
    with pytest.raises(BackboneError, match=r"every option in a row of its own.*set gear\.layouts=\[data\]"):
        CutModel(backbone.model).check(batch, [slice(0, 1), slice(1, None)])


def test_a_run_says_that_experts_are_not_adapted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for family, says in (("Mixtral", True), ("Llama", False)):
        save_text(family, tmp_path / family)
        model = load_backbone(str(tmp_path / family), dtype="float32").model
        _note_experts(AdaptedModel(model, RankPartition({"a": 2}), AdapterConfig()))
        shown = capsys.readouterr().out
        assert ("experts are not adapted: " in shown and "k_proj, o_proj" in shown) is says
