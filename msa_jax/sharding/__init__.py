"""Device meshes, and which parameter or batch axis lies on which mesh axis."""
