"""Answers single questions with a trained model."""
