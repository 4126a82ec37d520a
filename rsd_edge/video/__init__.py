"""Video files: frames stream through the resolver, everything else is copied, interrupted runs go on."""
