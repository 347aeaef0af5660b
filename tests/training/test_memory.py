"""The memory estimate against sums by hand."""

import transformers as hf

from contextlora.training.memory import estimate_memory


def test_weights_slices_optimizer_and_activations_are_counted():
    config = hf.LlamaConfig(
        vocab_size=10, hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    model = hf.LlamaForCausalLM(config).float()
    memory = estimate_memory(model, num_adapter=100, num_trainable=40, batch_size=4, num_tokens=20)
    assert memory.weights_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert memory.adapter_bytes == 2 * 4 * 100  # the slices and their best values, float32
    assert memory.optimizer_bytes == 3 * 4 * 40  # gradient and two moments
    # 3 layers x s b h (34 + 5 a s / h) bytes at 2 bytes a number, doubled for float32
    assert memory.activations_bytes == 3 * 20 * 4 * 8 * (34 + 5 * 2 * 20 / 8) * 2
    assert memory.total_bytes == sum(vars(memory).values())
    assert str(memory).startswith("memory: about 0 MiB")
