import math

import pytest
import torch

from contextlora.assembly.build import build_data, build_module
from contextlora.commands.export import export
from contextlora.errors import ConfigError, UserError
from contextlora.graph import TaskGraph
from contextlora.methods.contextlora import ContextLora
from contextlora.methods.mixlora import MixLora, MixLoraSettings, balance_loss


def best_two(logits):
    """Softmax over the two largest logits of each token, written out."""
    weights = []
    for row in logits.flatten(0, 1):
        first, second = sorted(range(len(row)), key=lambda e: -float(row[e].detach()))[:2]
        total = row[first].exp() + row[second].exp()
        shares = {first: row[first].exp() / total, second: row[second].exp() / total}
        weights.append(torch.stack([shares.get(e, torch.zeros_like(total)) for e in range(len(row))]))
    return torch.stack(weights).view(logits.shape)


def test_a_layer_weighs_the_two_best_experts_of_each_token(check_experts):
    check_experts(2, best_two)


def test_parameters_with_the_routers_are_those_of_contextlora_within_two_percent(num_parameters):
    assert num_parameters(MixLora()) == pytest.approx(num_parameters(ContextLora()), rel=0.02)


def test_balance_loss_of_a_hand_made_example():
    probabilities = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.3, 0.1]], requires_grad=True)
    weights = torch.tensor([[4 / 7, 3 / 7, 0, 0], [5 / 8, 0, 3 / 8, 0]])
    # f = (2, 1, 1, 0) / 4 choices, P = (.45, .2, .25, .1): 4 (.5 .45 + .25 .2 + .25 .25) = 1.35
    loss = balance_loss([(probabilities[:1], weights[:1]), (probabilities[1:], weights[1:])])  # two forwards
    assert float(loss) == pytest.approx(1.35)
    loss.backward()  # E f_e / N
    torch.testing.assert_close(probabilities.grad, torch.tensor([[1.0, 0.5, 0.5, 0.0]] * 2))


@pytest.mark.parametrize(("used", "expected"), [(4, 1.0), (1, 4.0)])
def test_balance_loss_is_1_for_experts_used_alike_and_their_number_for_one_used_alone(used, expected):
    weights = torch.zeros(8, 4)
    for token in range(8):
        weights[token, token % used] = 1.0
    assert float(balance_loss([(weights, weights)])) == pytest.approx(expected)


@pytest.fixture
def module(make_config):
    settings = ("method=mixlora", "method.dropout=0", "method.balance_weight=0.5", "taskset.context=none")
    config = make_config(*settings)
    module = build_module(config, build_data(config))
    module.begin_stage()
    module.adapted.train()
    return module


def routers(module):
    return [layer.lora_router for layer in module.adapted.layers().values()]


def test_the_penalty_sums_the_layers_takes_the_records_and_moves_the_routers(module):
    batch = module.data.encode_items("a", module.data.taskset.items("a", "train")[:4], None)
    plain = float(module.step_loss(batch))
    assert not any(router.take_seen() for router in routers(module))
    loss = module.step_loss(batch)
    assert float(loss) == plain  # nothing of the first step is left
    module._scores(batch)
    by_layer = [balance_loss(router.take_seen()) for router in routers(module)]
    assert float(loss.detach() - module._train_losses[-1]) == pytest.approx(0.5 * float(sum(by_layer)), rel=1e-5)
    # B is 0 at the start: only the penalty can move a router
    gradients = torch.autograd.grad(loss, [router.gate.weight for router in routers(module)])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_evaluation_records_nothing(module):
    module.accuracies("validation")
    with torch.no_grad():  # answers may also be made in training mode
        batch = module.data.encode_items("a", module.data.taskset.items("a", "train")[:4], None)
        module._scores(batch)
    assert not any(router.take_seen() for router in routers(module))


def test_routers_start_apart_by_the_seed_so_that_all_experts_are_chosen(make_config):
    def start(seed):
        config = make_config("method=mixlora", f"seed={seed}")
        return routers(build_module(config, build_data(config)))[0].gate.weight

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    assert math.isclose(float(start(0).std()), 0.02, rel_tol=0.3)


def test_more_choices_than_experts_are_refused():
    with pytest.raises(ConfigError, match=r"^method.top_k must be at most 2, one expert a task: got 3. Lower it.$"):
        MixLora(MixLoraSettings(top_k=3)).plan(TaskGraph({"a": [], "b": []}))


def test_a_run_resumes_with_its_routers_and_is_not_exported(make_config, check_resume, stage_weights):
    config = make_config("method=mixlora", "method.router_learning_rate=0.01")
    run = check_resume(config)
    (weights,) = stage_weights(run)
    assert sum(name.endswith("lora_router.gate.weight") for name in weights) == 14  # adapted layers of the tiny model
    assert run.results["method"] == "mixlora"
    assert all(0 <= row["final"] <= 1 for row in run.results["tasks"].values())
    with pytest.raises(UserError, match=r"^mixlora is no ordinary LoRA, which PEFT could load: use the run itself$"):
        export(config, run)
