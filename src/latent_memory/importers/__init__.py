"""Importers: files that people have -> Conversations. Each module has `read(path) -> iterator of Conversations`."""
