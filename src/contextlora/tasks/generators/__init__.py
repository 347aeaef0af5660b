"""Generators of the shipped task sets, one file each: distributions, units and rules in its head."""
