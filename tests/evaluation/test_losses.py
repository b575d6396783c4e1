"""Losses by formula, and the loss of a training as their weighted sum."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nas.core.errors import InputError
from nas.evaluation.criterion import Criterion
from nas.evaluation.losses import hard_loss, ratio_loss, soft_loss, token_logits_loss, token_loss
from nas.evaluation.recipe import Recipe
from nas.evaluation.teacher import Teacher, start_from
from nas.networks.building import build
from search_spaces.dynamicvit import SMALL_DEIT, SMALL_LVVIT, make
from tests.small import randomize

CPU = torch.device("cpu")
HOSTS = {"deit": (SMALL_DEIT, 32), "lvvit": (SMALL_LVVIT, 48)}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def thinned(host: str, places=(1, 2), keep=(70, 50)):
    """A small network of three blocks that drops tokens, and its host."""
    entry, width = HOSTS[host]
    make_one = [make(entry, width, 3, *cut, side=32, classes=10) for cut in ((places, keep), ())]
    return tuple(randomize(build(arch), seed=number) for number, arch in enumerate(make_one))


def test_the_soft_loss_is_the_divergence_of_the_student_from_the_teacher():
    student, teacher = drawn(4, 5, seed=1), drawn(4, 5, seed=2)
    for temperature in (1.0, 3.0):
        p, q = ((x / temperature).double().softmax(1).numpy() for x in (teacher, student))
        expected = temperature**2 * (p * np.log(p / q)).sum() / 4
        assert float(soft_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-5)


def test_the_hard_loss_is_cross_entropy_with_the_teachers_choice():
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.1, 0.2], [0.1, 0.2]])
    expected = (np.log(1 + np.exp(2)) + np.log(1 + np.exp(-1))) / 2
    assert float(hard_loss(student, teacher)) == pytest.approx(expected)


def test_keep_ratios_are_compared_image_by_image():
    kept = torch.tensor([[[1.0, 1, 1, 1], [1, 1, 0, 0]], [[1, 1, 0, 0], [0, 0, 0, 0]]])  # two images, two selections
    expected = ((1 - 0.7) ** 2 + (0.5 - 0.49) ** 2 + (0.5 - 0.7) ** 2 + (0 - 0.49) ** 2) / 4
    assert float(ratio_loss(kept, torch.tensor([0.7, 0.49]))) == pytest.approx(expected)


def test_only_kept_tokens_are_compared():
    student, teacher = drawn(2, 3, 4, seed=1), drawn(2, 3, 4, seed=2)
    kept = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    chosen = kept.bool()
    assert token_loss(student, teacher, kept) == pytest.approx(float(F.mse_loss(student[chosen], teacher[chosen])))
    p, q = (x[chosen].double().softmax(1) for x in (teacher, student))
    assert float(token_logits_loss(student, teacher, kept)) == pytest.approx(float((p * (p / q).log()).sum() / 3))
    for loss in (token_loss, token_logits_loss):
        assert float(loss(student, teacher, torch.zeros(2, 3))) == 0


@pytest.mark.parametrize("host", HOSTS)
def test_the_loss_of_dynamicvit_is_that_of_its_published_code(host):
    model, original = thinned(host)
    teacher = Teacher("host", original, original.arch, 32)
    recipe = Recipe(distill_soft=0.5, distill_tokens=0.5, keep="draw", ratio=2.0, label_smoothing=0.1)
    images, labels = drawn(6, 3, 32, 32), torch.arange(6)
    model.train()
    torch.manual_seed(0)
    streams = model.streams(images)
    loss = Criterion(recipe, model, 10, teacher, CPU)(streams, images, labels)

    # DistillDiffPruningLoss_dynamic of raoyongming/DynamicViT, losses.py
    head = original.stages[-1]
    with torch.no_grad():
        before = {"x": images}
        for stage in original.stages[:-1]:
            for block in stage:
                block.advance(before)
        theirs = nn.functional.layer_norm(
            before["x"], (before["x"].shape[2],), head[0].body.norm.body.weight, head[0].body.norm.body.bias,
            eps=head[0].body.norm.body.eps,
        )  # fmt: skip
        ours = streams["tokens"]
        logits = original(images)
        if host == "lvvit":
            theirs = head[1].body.patches(theirs[:, 1:])
            ours = model.stages[-1][1].body.patches(ours[:, 1:])
        else:
            theirs, ours = theirs[:, 1:], ours[:, 1:]
    mask = streams["kept"][:, -1].reshape(-1) > 0.5
    ours, theirs = (x.reshape(-1, x.shape[2])[mask] for x in (ours, theirs))
    expected = F.cross_entropy(streams["x"], labels, label_smoothing=0.1)
    for stage, keep in enumerate((0.7, 0.35)):
        expected = expected + 2.0 * ((streams["kept"][:, stage].mean(1) - keep) ** 2).mean() / 2
    kl = {"reduction": "batchmean", "log_target": True}
    expected = expected + 0.5 * F.kl_div(streams["x"].log_softmax(1), logits.log_softmax(1), **kl)
    expected = expected + 0.5 * (
        F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), **kl) if host == "lvvit" else F.mse_loss(ours, theirs)
    )
    assert 0 < int(mask.sum()) < len(mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class Heads(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, *logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.ParameterList(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[0]


def test_of_two_heads_one_learns_labels_and_the_other_the_teacher():
    first, last, answer = (drawn(4, 3, seed=seed) for seed in range(3))
    teacher = Teacher("fixed", Heads(answer), None, 8)
    images, labels = torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    judge = Criterion(Recipe(distill_hard=0.3, label_smoothing=0.0), nn.Module(), 3, teacher, CPU)
    by_label, by_teacher = F.cross_entropy(first, labels), F.cross_entropy(last, answer.argmax(1))
    assert float(judge({"x": (first, last)}, images, labels)) == pytest.approx(
        float(0.7 * by_label + 0.3 * by_teacher), rel=1e-6
    )
    single = 0.7 * by_label + 0.3 * F.cross_entropy(first, answer.argmax(1))
    assert float(judge({"x": first}, images, labels)) == pytest.approx(float(single), rel=1e-6)


def test_a_student_starts_from_the_weights_of_its_host():
    model, original = thinned("deit")
    start_from(Teacher("host", original, original.arch, 32), model)
    images = drawn(2, 3, 32, 32)
    whole = build(make(SMALL_DEIT, 32, 3, (1, 2), (100, 100), side=32, classes=10))  # keeps every token
    whole.load_state_dict(model.state_dict())
    torch.testing.assert_close(whole.eval()(images), original.eval()(images), rtol=1e-4, atol=1e-4)


def test_a_host_of_another_depth_is_refused():
    model, _ = thinned("deit")
    deeper = build(make(SMALL_DEIT, 32, 4, side=32, classes=10))
    with pytest.raises(InputError, match="expected"):
        start_from(Teacher("deeper", deeper, deeper.arch, 32), model)


def test_tokens_of_another_width_are_refused():
    model, _ = thinned("deit")
    wider = build(make(SMALL_DEIT, 48, 3, side=32, classes=10))
    judge = Criterion(Recipe(distill_tokens=1.0), model, 10, Teacher("wider", wider, wider.arch, 32), CPU)
    images = drawn(2, 3, 32, 32)
    with pytest.raises(InputError, match=r"the student has tokens \(2, 64, 32\), the teacher \(2, 64, 48\)"):
        judge(model.train().streams(images), images, torch.tensor([0, 1]))
