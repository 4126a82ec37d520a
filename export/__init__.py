"""Turning trained networks into graphs and engines; installed as `rsd_edge.export`."""
