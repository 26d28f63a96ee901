"""Figures, tables and the page, each figure beside the facts that it draws."""
