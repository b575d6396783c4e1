"""Parameters for each multiply-add: no training, no epochs."""

from dataclasses import dataclass

from nas.evaluation.evaluators import Evaluator, Score
from nas.networks.building import cost_of


@dataclass(frozen=True)
class Density(Evaluator):
    power: float = 1.0

    def score(self, build_model, data, *, arch, prepared, seed=0, device="cpu", on_epoch=None):
        cost = cost_of(arch)
        return Score(-((cost.params / cost.macs) ** self.power), "density")


EVALUATOR = Density
