"""The bundled checkpoint: loads with plain transformers, has the skills of its card, and knows no task."""

import json
import subprocess
import sys

import pytest
import torch

from contextlora.backbones.load import BUNDLED, load_backbone
from contextlora.backbones.pretraining.pretrain import skill_test
from contextlora.backbones.pretraining.vocabulary import WORDS
from contextlora.backbones.scoring import option_scores
from contextlora.tasks.prompts import context_of, render
from contextlora.tasks.tasksets import resolve_taskset

CARD = json.loads((BUNDLED / "skills.json").read_text())


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("bundled", dtype="float32")


@pytest.fixture(scope="module")
def iov(tmp_path_factory):
    return resolve_taskset("iov", data_dir=tmp_path_factory.mktemp("data"))


def test_it_loads_with_plain_transformers_and_nothing_of_ours():
    code = (
        "import sys\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(BUNDLED)!r})\n"
        f"processor = AutoProcessor.from_pretrained({str(BUNDLED)!r})\n"
        "ids = processor.tokenizer('lane c2 . what is in lane c1 ?', return_tensors='pt')['input_ids']\n"
        "assert model(input_ids=ids).logits.isfinite().all()\n"
        "assert 'contextlora' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True)


def test_it_is_small_enough_for_git_and_holds_safetensors_only():
    files = list(BUNDLED.iterdir())
    assert sum(file.stat().st_size for file in files) <= 30 * 2**20
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".jinja"}


def test_its_words_are_the_vocabulary(backbone):
    assert tuple(backbone.tokenizer.convert_ids_to_tokens(range(len(WORDS)))) == WORDS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_has_the_skills_of_its_card(dtype):
    """A tenth of the held-out skill test, in two dtypes, agrees with the card within sampling noise."""
    model = load_backbone("bundled", dtype=dtype).model.eval()
    skills = skill_test(model, split="test", num_batches=10)
    for name, row in skills.items():
        expected = CARD["skills"]["test"][name]["accuracy"]
        noise = 4 * (max(expected * (1 - expected), 0.01) / row["n"]) ** 0.5
        assert abs(row["accuracy"] - expected) < noise, name


@torch.inference_mode()
@pytest.mark.parametrize("context", ["none", "gold"])
@pytest.mark.parametrize("task", ["hazard", "grip", "manoeuvre", "route"])
def test_it_knows_no_task(backbone, iov, task, context):
    """Zero-shot accuracy on a task's own test split is near chance: no rule and no class is known."""
    items, spec = iov.items(task, "test"), iov.tasks[task]
    prompts = [
        render(item, spec, context_of(item, spec.prerequisites, context, {}), folder=iov.folder) for item in items
    ]
    right = 0
    for start in range(0, len(prompts), 125):
        batch = backbone.encode(prompts[start : start + 125])
        right += int((option_scores(backbone.model, batch).argmax(-1) == batch.answer).sum())
    assert abs(right / len(items) - 0.25) <= 0.10
