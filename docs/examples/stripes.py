"""Horizontal and vertical stripes: 2,000 grey images, two classes."""

import torch

from nas.evaluation.data import in_memory


def load(request):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (2000,), generator=generator)
    phases = torch.arange(32) / 2 + 6 * torch.rand(2000, 1, generator=generator)
    bytes_ = (127 + 127 * torch.sin(phases)).byte()
    lying = bytes_[:, None, :, None].expand(-1, 1, 32, 32)
    images = torch.where(labels.bool()[:, None, None, None], lying, lying.mT).contiguous()
    return in_memory(request, 2, (images[:1600], labels[:1600]), (images[1600:], labels[1600:]), mirrors=True)


DATASET = load
