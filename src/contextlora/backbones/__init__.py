"""Backbones: any Hugging Face checkpoint, the bundled one, and how they read prompts and score options."""
