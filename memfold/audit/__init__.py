"""Erasure and its evidence: what was forgotten, and that it is gone."""
