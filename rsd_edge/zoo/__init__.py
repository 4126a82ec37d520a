"""The models that ship with the package: one folder each, in the format of an engine bundle."""
