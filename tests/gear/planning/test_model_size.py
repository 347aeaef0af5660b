"""Costs of a model given by its numbers, written out by hand."""

import pytest

from contextlora.gear.planning.model_size import BlockSize, ModelSize, VisionSize, activation_bytes

# h = 4, 2 heads of 2. Query 4x4, key and value 4x2, output 4x4, three matrices of 4x6, two norms; d_in + d_out of them
# are 8, 6, 6, 8, 10, 10, 10. The second block leaves out the MLP.
FULL = BlockSize(16 + 8 + 8 + 16 + 3 * 24 + 8, 120, 58, 58, 4)
SHORT = BlockSize(16 + 8 + 8 + 16 + 4, 48, 28, 28, 4)
SIZE = ModelSize(4, 2, (FULL, SHORT), parameters_before=40, parameters_behind=44, head_weights=40)
SEEING = ModelSize(4, 2, (FULL, SHORT), 40, 44, 40, vision=VisionSize(1000, 5e4, 9))


def test_flops_by_hand():
    # 3 tokens, 2 FLOPs a weight and token; scores and their sum: 4 T^2 with 2 heads of 2; logits of one position
    assert SIZE.forward_flops(3, rank=0) == 2 * 3 * (120 + 48) + 2 * 4 * 9 * 4 + 2 * 40
    # a LoRA rank adds d_in + d_out to every matrix
    assert SIZE.forward_flops(3, rank=2) - SIZE.forward_flops(3, rank=0) == 2 * 3 * 2 * (58 + 28)
    assert SIZE.lora_parameters(2) == 2 * (58 + 28)
    assert SEEING.forward_flops(3, 0, has_image=True) - SEEING.forward_flops(3, 0) == 5e4


def test_experts_that_a_token_does_not_use_cost_nothing():
    # of 4 experts of 3 4x6 matrices, which LoRA adapts too, a token uses 1
    mixture = BlockSize(48 + 4 * 72, 48 + 72, 28 + 4 * 30, 28 + 30, 4)
    assert mixture.forward_flops(3, 2) == FULL.forward_flops(3, 2)


def test_shares_and_parameters_of_layers_count_what_stands_around_the_blocks():
    first, last = SIZE.layer_flops_shares(3)
    assert first + last == pytest.approx(1)
    assert last * SIZE.forward_flops(3, 0) == pytest.approx(SHORT.forward_flops(3, 0) + 2 * 40)
    assert SIZE.layer_parameters() == (FULL.num_parameters + 40, SHORT.num_parameters + 44)
    assert SEEING.layer_parameters() == (FULL.num_parameters + 1040, SHORT.num_parameters + 44)
    assert SEEING.num_parameters == sum(SEEING.layer_parameters()) == SEEING.num_text_parameters + 1000
    assert SEEING.layer_flops_shares(3, has_image=True)[0] > first


def test_layers_outside_of_the_blocks_may_have_lora_too():
    assert ModelSize(4, 2, (FULL,), 40, 44, 40, outer_lora_width=14).lora_parameters(3) == 3 * (58 + 14)


def test_activations_follow_korthikanti():
    # T h (34 + 5 a T / h) with T = 3, h = 4, a = 2; twice that with 4-byte numbers
    assert activation_bytes(3, 4, 2) == 3 * 4 * (34 + 5 * 2 * 3 / 4)
    assert activation_bytes(3, 4, 2, 4) == 2 * 3 * 4 * (34 + 5 * 2 * 3 / 4)
