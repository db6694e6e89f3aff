"""Fast paths for what `core` defines; a kernel folder has one `api` and several backends.

`parallel` calls kernels on a mesh, `content` fetches what they chose, wherever it lies.
"""
