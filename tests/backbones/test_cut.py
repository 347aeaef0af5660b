"""A model run stage by stage; the reference is the whole model, bit by bit: the same products on the same rows."""

import pytest
import torch
from PIL import Image

from contextlora.adapters import AdaptedModel, AdapterConfig
from contextlora.backbones.cut import CutModel
from contextlora.backbones.encoding import OptionBatch
from contextlora.backbones.faults import BackboneError
from contextlora.backbones.scoring import option_scores
from contextlora.graph import RankPartition, SliceUse
from contextlora.tasks.prompts import IMAGE_PLACEHOLDER, Prompt
from contextlora.training.dropout import share_masks

USE = SliceUse(("v",))
STAGES = (slice(0, 1), slice(1, None))  # of the tiny models' two layers
BATCH = 3


def adapted_by(backbone, dropout=0.0):
    """The whole LoRA moved away from zero, and in training mode."""
    adapted = AdaptedModel(backbone.model, RankPartition({"v": 2}), AdapterConfig(dropout=dropout))
    torch.manual_seed(3)
    adapted.state.write({name: torch.randn(t.shape) / 8 for name, t in adapted.state.read().items()})
    adapted.begin_stage({"v": USE})
    return adapted.train()


def text_batch(length=7, num_tokens=1):
    """Random words, the first prompt shorter than the others."""
    random = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 20, (BATCH, length), generator=random)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = torch.arange(3, 3 + 2 * num_tokens).view(1, 2, num_tokens).repeat(BATCH, 1, 1)
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    answer = torch.zeros(BATCH, dtype=torch.long)
    return OptionBatch(inputs, options, torch.ones_like(options).bool(), answer, "v", range(BATCH), BATCH)


def rows_of(batch, rows):
    inputs = {name: value[rows.start : rows.stop] for name, value in batch.inputs.items()}
    options, mask, answer = (t[rows.start : rows.stop] for t in (batch.option_ids, batch.option_mask, batch.answer))
    return OptionBatch(inputs, options, mask, answer, "v", rows, BATCH)


@pytest.fixture
def image_batch(backbone, tmp_path):
    """(llava backbone, options) -> three prompts with an image each."""

    def make(llava, options):
        asked = []
        for number, words in enumerate(("grip", "lane c1 grip", "wet lane")):
            Image.new("RGB", (16, 16), (80 * number, 10, 90)).save(path := tmp_path / f"{number}.png")
            asked.append(Prompt("v", f"{IMAGE_PLACEHOLDER} {words} answer :", path, options, 1))
        return llava.encode(asked)

    return make


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "gemma", "llava"])
def test_stages_give_scores_and_gradients_of_the_whole(kind, num_tokens, backbone, image_batch):
    loaded = backbone(kind)
    if kind == "llava":
        batch = image_batch(loaded, ("dry wet c1"[: 3 if num_tokens == 1 else None], "damp"))
    else:
        batch = text_batch(num_tokens=num_tokens)
    assert batch.option_ids.shape[-1] == num_tokens
    adapted = adapted_by(loaded)
    adapted.model.eval()  # GPT-2 has dropout of its own
    cut = CutModel(adapted.model)
    with adapted.active(USE, "v"):
        expected = option_scores(adapted.model, batch)
        expected.sum().backward()
        gradients = {id(p): p.grad.clone() for p in adapted.parameters() if p.grad is not None}
        adapted.zero_grad()
        hidden = cut.run(batch, STAGES[0], None)
        received = hidden.detach().requires_grad_()
        found = cut.run(batch, STAGES[1], received)
    assert hidden[0].shape == cut.item(batch).shape
    assert torch.equal(found, expected)
    found.sum().backward()
    last = cut.parameters(STAGES[1])
    assert all(p.grad is not None for p in last)
    assert all(p.grad is None for p in cut.parameters(STAGES[0]))
    hidden.backward(received.grad)
    trained = [*cut.parameters(STAGES[0]), *last]
    assert len(gradients) == len(trained) == len({id(p) for p in trained})
    assert all(torch.equal(p.grad, gradients[id(p)]) for p in trained)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_a_stage_on_some_rows_drops_what_the_whole_batch_would(num_tokens, backbone):
    adapted, batch = adapted_by(backbone("qwen2"), dropout=0.5), text_batch(num_tokens=num_tokens)
    cut, masks = CutModel(adapted.model), share_masks(adapted, seed=0)
    masks.rows, masks.batch_size = batch.rows, batch.batch_size
    with adapted.active(USE, "v"):
        expected = option_scores(adapted.model, batch)
        masks.step = 1
        assert not torch.allclose(option_scores(adapted.model, batch), expected)  # something is dropped
        masks.step = 0
    parts = [rows_of(batch, range(1)), rows_of(batch, range(1, 3))]
    hidden = dict.fromkeys(range(2))
    for layers in STAGES:
        for number, part in enumerate(parts):
            torch.randn(7)  # whatever was drawn since does not matter
            masks.rows = part.rows
            with adapted.active(USE, "v"):
                hidden[number] = cut.run(part, layers, hidden[number])
    torch.testing.assert_close(torch.cat([hidden[0], hidden[1]]), expected)


def test_check_takes_what_fits_and_refuses_what_does_not(backbone):
    adapted = adapted_by(backbone("qwen2"), dropout=0.5)
    cut, masks = CutModel(adapted.model), share_masks(adapted, seed=0)
    masks.rows, masks.batch_size = range(BATCH), BATCH
    with adapted.active(USE, "v"):
        cut.check(text_batch(), STAGES)
        cut.check(text_batch(num_tokens=3), STAGES)
        with pytest.raises(BackboneError, match=r"cannot be run as a layer pipeline \(its stages give other scores"):
            cut.check(text_batch(), (slice(0, 1), slice(0, None)))
    own_dropout = adapted_by(backbone("gpt2"))
    with own_dropout.active(USE, "v"), pytest.raises(BackboneError, match="GPT2LMHeadModel cannot be run"):
        CutModel(own_dropout.model).check(text_batch(), STAGES)
