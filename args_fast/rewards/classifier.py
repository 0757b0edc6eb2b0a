"""A reward model that is a decoder with a linear head, read at the candidate itself."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from args_fast.errors import RewardHeadError
from args_fast.models.backbone import Backbone


class BranchedClassifier(Backbone):
    """A ``*ForSequenceClassification`` model with one label.

    Its own forward pools "the last token that is not padding", which scores a candidate EOS as
    r([x]) wherever pad and EOS share an id. Here the head is applied to the candidate's own hidden
    state.

    Raises:
        RewardHeadError: there is no linear head called ``score`` with one output.
        UnsupportedModelError: as for Backbone.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear):
            raise RewardHeadError(
                f"the reward model ({type(model).__name__}) has no linear head called `score`; "
                "load it with AutoModelForSequenceClassification from a checkpoint trained as one."
            )
        if head.out_features != 1:
            raise RewardHeadError(
                f"the reward model's head has num_labels = {head.out_features}; a reward is one "
                "number, so it must be 1. Use a model trained with num_labels=1."
            )
        super().__init__(model, "reward model")

    # Asked of the model each time: between decodes it is the caller's, who may train it.

    @property
    def head_weight(self) -> Tensor:
        """[H]"""
        return self.model.score.weight.detach()[0]  # type: ignore

    @property
    def head_bias(self) -> Tensor | None:
        """[1], or None"""
        bias: Tensor | None = self.model.score.bias  # type: ignore
        return None if bias is None else bias.detach()

    def reward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> rewards [...], float32; accumulated in float32 too, as select does."""
        rewards = hidden.float() @ self.head_weight.float()
        return rewards if self.head_bias is None else rewards + self.head_bias.float()
