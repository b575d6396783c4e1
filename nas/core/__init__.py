"""What an architecture is: ops, blocks, spaces, archs, and what is recorded from a model."""
