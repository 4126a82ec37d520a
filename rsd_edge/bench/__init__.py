"""Measuring: what an engine costs, what the machine could do, and times taken side by side."""
