"""Figures and pages from plain numbers: arrays and words in, bytes out."""
