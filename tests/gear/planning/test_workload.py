"""Chains, steps and bytes of the stages of a small graph, worked out by hand."""

import pytest

from contextlora.errors import ConfigError
from contextlora.gear.planning.model_size import BlockSize, ModelSize
from contextlora.gear.planning.workload import estimate_workloads
from contextlora.graph import RankPartition, SliceUse, TaskGraph, TrainingPlan

# a and b are roots, c needs both, d needs c (and through it a and b).
GRAPH = TaskGraph({"a": (), "b": (), "c": ("a", "b"), "d": ("c",)})
TOKENS = {"a": 3, "b": 5, "c": 4, "d": 6}
# h = 4, 2 heads of 2; four matrices of 4x4 and three of 4x6 in each of 2 blocks, 10 words.
BLOCK = BlockSize(
    num_parameters=144, active_weights=136, lora_width=4 * 8 + 3 * 10, active_lora_width=62, attention_width=4
)
MODEL = ModelSize(4, 2, (BLOCK, BLOCK), parameters_before=40, parameters_behind=44, head_weights=40)


def plan(delta=1.0):
    uses = {task: SliceUse((task,), dict.fromkeys(GRAPH.prerequisites(task), delta)) for task in GRAPH.tasks}
    return TrainingPlan(RankPartition(dict.fromkeys(GRAPH.tasks, 2)), uses, GRAPH.generations)


def estimate(training_plan=None, **changes):
    settings = {"batch_size": 8, "steps_per_task": 10, "num_items": dict.fromkeys(TOKENS, 20)} | changes
    images = dict.fromkeys(TOKENS, False)
    return estimate_workloads(MODEL, GRAPH, training_plan or plan(), tokens=TOKENS, images=images, **settings)


def test_the_chain_of_an_item_holds_every_ancestor_trained_before():
    stages = estimate()
    chains = {task.task: task.num_prerequisites for stage in stages for task in stage.tasks}
    assert chains == {"a": 0, "b": 0, "c": 2, "d": 3}
    (c,) = stages[1].tasks
    # active ranks: 2 of a root's own; the mean over a and b
    assert c.prerequisite_flops == (MODEL.forward_flops(3, 2) + MODEL.forward_flops(5, 2)) / 2
    # c's own 2 ranks and 2 of each prerequisite
    assert c.forward_flops == MODEL.forward_flops(4, 6)
    # 8 bytes an answer; activations of 4 and of (3 + 5) / 2 tokens, 4 numbers of 2 bytes each
    assert (c.answer_bytes, c.boundary_bytes, c.prerequisite_boundary_bytes) == (16, 32, 32)


def test_a_prerequisite_trained_in_the_same_stage_has_no_answer_yet():
    joint = TrainingPlan(RankPartition({"all": 8}), dict.fromkeys(GRAPH.tasks, SliceUse(("all",))), (GRAPH.tasks,))
    assert {task.num_prerequisites for task in estimate(joint)[0].tasks} == {0}


def test_without_answers_in_the_prompts_there_are_no_chains():
    assert {task.num_prerequisites for stage in estimate(answers_needed=False) for task in stage.tasks} == {0}


def test_gradients_are_those_of_the_ranks_that_train():
    # frozen prerequisites: d trains its own 2 ranks; half open: also 1 of c's 2; float32
    assert estimate()[2].tasks[0].gradient_bytes == 4 * MODEL.lora_parameters(2)
    assert estimate(plan(delta=0.5))[2].tasks[0].gradient_bytes == 4 * MODEL.lora_parameters(3)
    # gradients and two moments of both roots; all slices of the LoRA
    assert estimate()[0].optimizer_bytes == 3 * 4 * MODEL.lora_parameters(4)
    assert estimate()[0].adapter_bytes == 4 * MODEL.lora_parameters(8)


def test_an_epoch_ends_after_its_last_items():
    task = estimate()[2].tasks[0]
    # 20 items in batches of 8 take 3 steps; never more than the 10 of the stage
    assert (task.first_epoch_steps(8), task.first_epoch_steps(1)) == (3, 10)


@pytest.mark.parametrize("key", ["batch_size", "steps_per_task"])
def test_a_workload_without_work_is_refused(key):
    with pytest.raises(ConfigError, match=f"training.{key} must be at least 1, got 0"):
        estimate(**{key: 0})
