"""Which attention `auto` takes, and that both give the same scores."""

import pytest
import torch

from contextlora.assembly.build import build_data
from contextlora.backbones import attention
from contextlora.backbones.load import load_backbone
from contextlora.backbones.scoring import option_scores


@pytest.mark.parametrize(("sdpa_s", "chosen"), [(0.7, "sdpa"), (0.9, "eager"), (1.5, "eager")])
def test_sdpa_is_taken_where_it_saves_a_fifth(sdpa_s, chosen, make_config, monkeypatch):
    """By the least time: a first forward, and other work of the machine, only add."""
    data = build_data(make_config())
    items = data.taskset.items("a", "train")[:2]
    batch, model = data.encode_items("a", items, None), data.backbone.model
    now, names = [0.0], []

    def scores(model, batch):
        names.append(model.config._attn_implementation)
        now[0] += (sdpa_s if names[-1] == "sdpa" else 1.0) + (5.0 if len(names) <= 2 else 0.0)

    monkeypatch.setattr(attention, "option_scores", scores)
    monkeypatch.setattr(attention.time, "perf_counter", lambda: now[0])
    assert attention.choose_attention(model, batch) == chosen
    assert set(names) == {"eager", "sdpa"}
    assert model.config._attn_implementation == chosen


def test_auto_measures_and_gives_the_scores_of_either(make_config, model_folder):
    data = build_data(make_config("model.attn_implementation=auto"))
    assert data.backbone.model.config._attn_implementation in ("eager", "sdpa")
    batch = data.encode_items("a", data.taskset.items("a", "train")[:3], None)
    for name in ("eager", "sdpa"):
        model = load_backbone(str(model_folder), dtype="float32", attn_implementation=name).model
        with torch.no_grad():
            torch.testing.assert_close(option_scores(model, batch), option_scores(data.backbone.model, batch))
