"""What is trained, the same for every strategy: model, data, optimizer, precision."""
