"""Metrics documents, read back."""
