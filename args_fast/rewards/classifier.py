"""A reward model that is a decoder with a linear head, read at the candidate itself."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from args_fast.engine.backbone import Backbone
from args_fast.errors import RewardHeadError


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
        self.head = head
        self.head_weight: Tensor = head.weight.detach()[0]
        self.head_bias: Tensor | None = None if head.bias is None else head.bias.detach()

    def reward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] -> rewards [...], float32."""
        return self.head(hidden).float()[..., 0]
