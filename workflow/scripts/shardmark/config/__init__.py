"""The configuration: its schema, loading with all mistakes listed, and the file that jobs read."""
