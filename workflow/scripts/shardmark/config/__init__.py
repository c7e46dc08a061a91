"""The configuration: schema, loading with every mistake named, and the file that jobs read."""
