"""Builds the parts of a run from its configuration, which is unpacked here and nowhere below."""
