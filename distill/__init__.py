"""Training: data, degradations, objectives and stages; installed as `rsd_edge.distill`."""
