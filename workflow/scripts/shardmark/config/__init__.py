"""The configuration: its schema, the loading that lists all mistakes, and the file for the jobs."""
