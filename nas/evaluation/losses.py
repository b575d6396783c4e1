"""Losses that read more than logits and labels: those with a teacher.

DynamicViT's (arXiv:2106.02034, sec. 3.3, eqs. 6 to 10) follow the published code where it differs from the paper: the
divergence is that of the student from the teacher, and squares are averaged over tokens and channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy with the class that the teacher would choose (arXiv:2012.12877, sec. 3). Logits (N, classes)."""
    return F.cross_entropy(student, teacher.argmax(1))


def soft_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) in nats, times temperature**2 (arXiv:1503.02531, sec. 2). Logits (..., classes).

    The mean over all but the last axis.
    """
    ours, theirs = ((logits / temperature).log_softmax(-1).flatten(0, -2) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


def token_loss(student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Mean squared difference of the tokens (N, T, C) that are kept, 1 or 0 (N, T); 0 where none is."""
    squares = (student - teacher).square().mean(2)
    return (squares * kept).sum() / kept.sum().clamp_min(1)


def token_logits_loss(student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Mean KL(teacher || student) of the logits (N, T, classes) of tokens that are kept, 1 or 0 (N, T)."""
    ours, theirs = student.log_softmax(2), teacher.log_softmax(2)
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2)
    return (divergence * kept).sum() / kept.sum().clamp_min(1)
