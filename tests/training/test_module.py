"""One fit through all stages: what the prompts hold, what moves, which weights are kept."""

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file

from contextlora.assembly.build import build_data, build_module
from contextlora.errors import UserError
from contextlora.methods.per_task import PerTask
from contextlora.tasks.datamodule import TaskSetDataModule
from contextlora.tasks.task import item_key
from contextlora.training.fit import TrainerSettings, fit
from contextlora.training.module import ContextLoraModule
from contextlora.training.optimizer import OptimizerSettings
from contextlora.training.stage_files import StageFiles
from contextlora.training.stages import StageLength


@pytest.fixture
def prompts(monkeypatch):
    """(task, scene, contexts) of every item that a training or validation batch is made of."""
    seen = []
    with_context = TaskSetDataModule._with_context

    def spy(self, task, items, rows=None):
        names = self.taskset.graph.prerequisites(task)
        given = [self.answers.get(item_key(task, item), {}) for item in items]
        seen.extend((task, item, {n: words.get(n) for n in names}) for item, words in zip(items, given, strict=True))
        return with_context(self, task, items, rows)

    monkeypatch.setattr(TaskSetDataModule, "_with_context", spy)
    return seen


@pytest.mark.parametrize("context", ["gold", "predicted"])
def test_train_prompts_hold_the_mode_s_answers_and_validation_prompts_predicted_ones(
    context, make_config, train, tmp_path, prompts
):
    config = make_config(f"taskset.context={context}", "training.steps_per_task=2", "method.delta=1.0")
    train(config, tmp_path)
    # delta = 1 freezes the roots after the first stage: the final weights give the answers that the chain gave then.
    parts = build_module(config, build_data(config))
    StageFiles(tmp_path, parts).load(2)
    for split, expected in (("train", context), ("validation", "predicted")):
        answers = parts.evaluator.chain_answers(["c"], split)
        asked = [(item, given) for task, item, given in prompts if task == "c" and item.scene.startswith(split)]
        assert asked
        for item, given in asked:
            right = {name: item.prerequisites[name] for name in ("a", "b")}
            predicted = answers[item_key("c", item)]
            assert given == (right if expected == "gold" else predicted)


@pytest.mark.parametrize("method", ["contextlora", "joint"])
def test_several_items_of_a_scene_train_as_those_of_scenes_of_their_own(
    method, make_config, paired_folder, train, tmp_path
):
    found, expected = (
        train(make_config(f"method={method}", *settings), tmp_path / str(len(settings))).adapted.state.read()
        for settings in ((f"taskset={paired_folder}",), ())
    )
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_joint_training_starts_with_right_answers_and_goes_on_with_its_own(make_config, train, tmp_path, prompts):
    train(make_config("method=joint", "training.steps_per_task=4", "training.batch_size=8"), tmp_path)
    asked = [(item, given) for task, item, given in prompts if task == "c" and item.scene.startswith("train")]
    assert len(asked) == 32  # two intervals of 2 steps of 8 items
    right = [given == {name: item.prerequisites[name] for name in ("a", "b")} for item, given in asked]
    assert all(right[:16])
    assert not all(right[16:])


def test_every_task_takes_its_steps_and_frozen_slices_keep_their_bits(make_config, train, tmp_path):
    module = train(make_config("method.delta=1.0", "method.variant=paper"), tmp_path)
    assert module.progress.steps_taken == [10, 5, 5]
    assert module.progress.total_steps == 20
    files = [load_file(tmp_path / f"stage-{number}.safetensors") for number in (1, 2, 3)]
    owners = [{name.rsplit(".", 1)[1] for name in file} for file in files]
    assert owners == [{"a", "b"}, {"c"}, {"d"}]  # a file holds what its stage trained
    last = module.adapted.state.read()
    assert all(torch.equal(tensor, last[name]) for file in files for name, tensor in file.items())


class Scripted(ContextLoraModule):
    """Validates with given accuracies, at a loss that never changes."""

    scripted = iter(())
    at_validation: dict[tuple[int, int], dict[str, torch.Tensor]]

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self._sums[batch.task] = [1.0, 0.0, 1.0]

    def on_validation_epoch_end(self):
        for sums in self._sums.values():
            sums[1] = next(self.scripted)
        self.at_validation[self.progress.stage, self.progress.interval] = self.adapted.state.read()
        super().on_validation_epoch_end()


def test_a_stage_ends_with_the_weights_of_its_best_validation(make_config, tmp_path):
    config = make_config("method=per_task", "taskset.context=none")
    length = StageLength(steps_per_task=4, validate_every_steps=1, patience=2)
    settings = OptimizerSettings(1e-2, warmup_share=0.0)
    module = Scripted(build_data(config), PerTask(config.method), length=length, optimizer=settings)
    # Patience ends the first two stages: nothing better than the second validation, nothing better than the first.
    module.scripted = iter([0.1, 0.6, 0.5, 0.6, 0.2, 0.2, 0.2, 0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.5, 0.1])
    module.at_validation = {}
    at_stage_end = []
    fit(
        module,
        TrainerSettings(accelerator="cpu"),
        checkpoints=tmp_path,
        metrics_file=tmp_path / "metrics.jsonl",
        save_stage=lambda stage, owners: at_stage_end.append(module.adapted.state.read()),
        console=None,
    )
    assert module.progress.steps_taken == [4, 3, 4, 4]
    for stage, best in enumerate((1, 0, 3, 2)):
        expected = module.at_validation[stage, best]
        assert all(torch.equal(at_stage_end[stage][name], tensor) for name, tensor in expected.items())


@pytest.fixture
def make_trainer():
    return lambda: Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False)


def test_a_trainer_that_is_to_measure_is_told_what_does(make_config, make_trainer):
    module = build_module(make_config(), build_data(make_config()))
    for name in ("validate", "test", "predict"):
        with pytest.raises(UserError, match=rf"only fit this module, got {name}: call module.accuracies\(split\)"):
            getattr(make_trainer(), name)(module, datamodule=module.data)


def test_a_fit_after_the_last_stage_says_so(make_config, make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config("training.steps_per_task=1")
    module, trainer = build_module(config, build_data(config)), make_trainer()
    trainer.fit(module, datamodule=module.data)
    trained = module.accuracies()
    resumed = build_module(config, build_data(config))
    for one, checkpoint in ((module, None), (resumed, trainer.checkpoint_callback.best_model_path)):
        with pytest.raises(UserError, match="a fit needs a stage that is left, all 3 are done"):
            make_trainer().fit(one, datamodule=one.data, ckpt_path=checkpoint)
        assert one.accuracies() == trained
