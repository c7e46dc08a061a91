"""Measure a cell, and apply the rules that decide whether a measurement counts."""
