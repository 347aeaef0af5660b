"""Evaluation: accuracy with and without the chain of predicted prerequisites, its intervals, tables and pictures."""
