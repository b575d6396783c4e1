"""Architectures as PyTorch modules: built, sliced, used as backbones, exported."""
