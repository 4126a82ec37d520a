"""The models that ship with the package: one folder each, and in it an engine bundle for each precision."""
