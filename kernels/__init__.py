"""GPU kernels and their plain torch definitions; installed as `rsd_edge.kernels`."""
