"""Deltas that change within a stage: frozen ranks keep their bits, moments stay, the best weights hold all of it."""

from dataclasses import replace

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file

from contextlora.assembly.build import build_data, build_module, trainer_settings
from contextlora.methods.contextlora import ContextLora
from contextlora.training.fit import fit
from contextlora.training.stage_files import StageFiles

DELTAS = {"c": (1.0, 0.5, 0.5, 0.0, 1.0), "d": (1.0,) * 5}  # of all edges into the task, interval by interval


class Scripted(ContextLora):
    """Follows `DELTAS`."""

    changes_uses = True

    def next_uses(self, view):
        return {
            task: replace(use, prerequisites=dict.fromkeys(use.prerequisites, DELTAS[task][view.interval]))
            for task, use in view.uses.items()
            if task in view.tasks and use.prerequisites
        }


class Watch(Callback):
    """Weights, orders and numbers of AdamW's steps when an interval begins and when its training ends."""

    def __init__(self):
        self.began, self.ended = {}, {}

    def on_train_epoch_start(self, trainer, module):
        self.key = module.progress.stage, module.progress.interval
        self.began[self.key] = self._now(module)

    def on_train_batch_end(self, trainer, module, *_):
        self.ended[self.key] = self._now(module)

    @staticmethod
    def _now(module):
        state = module.optimizers(use_pl_optimizer=False).state
        steps = {
            name: int(state[one]["step"]) for name, one in module.adapted.named_parameters() if len(state.get(one, ()))
        }
        return module.adapted.state.read(), module.adapted.stage_state(), steps


@pytest.fixture
def accuracies():
    """Of every stage: it improves up to its fourth interval, in which all ranks of a and b are open for c."""
    return (0.1, 0.2, 0.3, 0.4, 0.0)


@pytest.fixture
def trained(make_config, tmp_path, accuracies):
    """Rank 4, all values trained at the full rate."""
    config = make_config(
        "method.rank=4", "training.steps_per_task=10", "method.variant=paper", "method.open_learning_rate_scale=1.0"
    )
    module = build_module(config, build_data(config))
    module.method = Scripted(module.method.settings)
    validate, watch = module.on_validation_epoch_end, Watch()

    def scripted_accuracy():
        accuracy = accuracies[module.progress.interval]
        module._sums = {task: [1.0, accuracy, 1.0] for task in module.stage_tasks}
        validate()

    module.on_validation_epoch_end = scripted_accuracy
    files = StageFiles(tmp_path, module)
    settings = {"save_stage": files.save, "console": None, "callbacks": [watch]}
    fit(module, trainer_settings(config), checkpoints=tmp_path, metrics_file=tmp_path / "metrics.jsonl", **settings)
    return module, watch, files


def moved(before, after, name, orders):
    """Per module: which ranks of a slice have changed, in the order of freezing."""
    found = {}
    for module, order in orders.items():
        A = [state[f"{module}.lora_A.{name}"][order[name]] for state in (before, after)]
        B = [state[f"{module}.lora_B.{name}"][:, order[name]] for state in (before, after)]
        found[module] = ((A[0] != A[1]).any(dim=1) | (B[0] != B[1]).any(dim=0)).tolist()
    return found


def test_ranks_move_only_in_the_intervals_in_which_they_are_open(trained):
    _, watch, _ = trained
    for interval, delta in enumerate(DELTAS["c"]):
        (before, orders, _), (after, same_orders, _) = watch.began[1, interval], watch.ended[1, interval]
        assert orders == same_orders == watch.began[1, 0][1]  # opened and frozen again: by one order
        num_frozen = round(4 * delta)
        for name in ("a", "b"):
            assert set(map(tuple, moved(before, after, name, orders).values())) == {
                (False,) * num_frozen + (True,) * (4 - num_frozen)
            }
        assert all(torch.equal(before[name], after[name]) for name in before if name.endswith(".d"))


def test_moments_stay_with_their_ranks(trained):
    _, watch, _ = trained
    for interval in range(1, 5):
        *_, steps = watch.began[1, interval]
        own = {count for name, count in steps.items() if "A:c:" in name}
        others = {count for name, count in steps.items() if "A:a:" in name}
        assert own == {2 * interval}
        # the open half goes on from the second interval to the third; a leaf that is cut otherwise starts anew
        assert others == ({2} if interval == 2 else set())


def test_the_best_weights_hold_open_prerequisites(trained):
    _, watch, files = trained
    best, *_ = watch.ended[1, 3]
    kept = load_file(files.path(1))
    assert {name.rsplit(".", 1)[1] for name in kept} == {"a", "b", "c"}
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    last, *_ = watch.ended[1, 4]
    assert not all(torch.equal(kept[name], last[name]) for name in kept)


@pytest.mark.parametrize("accuracies", [(0.5, 0.0, 0.0, 0.0, 0.0)])
def test_the_best_weights_hold_prerequisites_that_opened_only_later(trained):
    _, watch, files = trained
    best, *_ = watch.ended[1, 0]
    last, *_ = watch.ended[1, 4]
    kept = load_file(files.path(1))
    assert {name.rsplit(".", 1)[1] for name in kept} == {"a", "b", "c"}
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert not all(torch.equal(last[name], best[name]) for name in best if name.endswith(".a"))


def test_deltas_are_logged_with_the_interval_in_which_they_held(trained):
    module, *_ = trained
    rows = [row for row in module.progress.history if row["stage"] == 1]
    assert [row["delta/a->c"] for row in rows] == list(DELTAS["c"])
    assert [row["delta/b->c"] for row in rows] == list(DELTAS["c"])
    assert not any(key.startswith("delta/") for row in module.progress.history if row["stage"] == 0 for key in row)
    assert module.progress.uses["c"] == [["c"], {"a": 1.0, "b": 1.0}]
