"""Memories on devices: shared by a mesh, searched where they lie."""
