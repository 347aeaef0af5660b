"""ContextLoRA: train one language model on many related tasks, guided by a task dependency graph."""
