"""Synthetic clips with exact tracks."""
