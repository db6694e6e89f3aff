"""Fast paths for what `core` defines; each kernel folder has one `api` and several backends."""
