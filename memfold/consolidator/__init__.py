"""Decides what of a session is old, asks a summarizer for fewer words, and appends facts; never writes a read model."""
