"""Networks in torch: needed for training and export, never to run an engine."""
