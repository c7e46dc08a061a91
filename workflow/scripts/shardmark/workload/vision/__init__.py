"""Workloads that classify images."""
