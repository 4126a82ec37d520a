"""Cameras: newest frames in, enlarged ones out, for as long as it lasts."""
