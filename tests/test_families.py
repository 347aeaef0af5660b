"""Peculiar families, tiny, train and export to what plain PEFT scores the same; `make families` does so for all."""

from pathlib import Path

import pytest
from families import TOLERANCE, check_family

from contextlora.backbones.faults import BackboneError

PECULIAR = {
    "Jamba": "row of its own",  # a second forward loses its states
    "Qwen3-Next": "row of its own",  # no gradient through its states
    "LFM2": "second forward",
    "Mamba": "row of its own",
    "GPT-OSS": "packed",
    "BLOOM": "second forward",
    "Qwen2.5-VL": "row of its own",
    "Qwen3-VL": "row of its own",
    "LLaVA-Next": "packed",
    "Idefics3": "packed",
    "PaliGemma": "packed",
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
