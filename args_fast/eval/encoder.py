"""Coherence: the cosine of a sentence encoder's embeddings of prompt and response.

The paper takes SimCSE (princeton-nlp/sup-simcse-bert-base-uncased, pooling "pooler"). Any model of
sentence-transformers, or any encoder of transformers, can stand for it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from args_fast.errors import EvaluationError

POOLINGS = ("auto", "mean", "cls", "pooler")
BATCH = 32

Encode = Callable[[list[str]], Tensor]


class Encoder:
    """A sentence encoder, loaded once.

    Args:
        path: a folder or hub id.
        pooling: "auto" (sentence-transformers where it is installed, else "mean"), or how one
            vector is made of an encoder's last hidden states: their "mean", the "cls" token's, or
            the model's own "pooler".
        device: where it runs, as torch names it.

    Raises:
        EvaluationError: the encoder cannot be loaded, or has no such pooling.
    """

    def __init__(self, path: str, *, pooling: str = "auto", device: str = "cpu") -> None:
        if pooling not in POOLINGS:
            raise EvaluationError(
                f"pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}"
            )
        try:
            self._encode, self.description = _load(path, pooling, device)
        except (OSError, ValueError, ImportError) as error:
            if isinstance(error, EvaluationError):
                raise
            raise EvaluationError(f"cannot load the encoder {path}: {error}") from error

    def coherence(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The cosine of each prompt's and its response's embedding, -1 to 1."""
        values: list[float] = []
        for start in range(0, len(prompts), BATCH):
            asked, answered = (
                self._encode(list(texts[start : start + BATCH])).float().cpu()
                for texts in (prompts, responses)
            )
            values += cosine_similarity(asked, answered, dim=-1).tolist()
        return values


def _load(path: str, pooling: str, device: str) -> tuple[Encode, str]:
    """A function from texts to embeddings [texts, H], and what it is in words."""
    if pooling == "auto":
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            if (Path(path) / "modules.json").is_file():
                raise EvaluationError(
                    f"{path} is a model of sentence-transformers: pip install "
                    "sentence-transformers, or name its pooling (--pooling mean)"
                ) from None
            pooling = "mean"
        else:
            model = SentenceTransformer(
                path, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )

            def encode(texts: list[str]) -> Tensor:
                return model.encode(texts, convert_to_tensor=True, show_progress_bar=False)

            return encode, f"{path} (sentence-transformers)"
    return _load_with_transformers(path, pooling, device), f"{path} ({pooling} pooling)"


def _load_with_transformers(path: str, pooling: str, device: str) -> Encode:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32).eval()
    model.to(device)
    if pooling == "pooler" and getattr(model, "pooler", None) is None:
        raise EvaluationError(f"{path} has no pooler; take --pooling mean or cls")
    limit = model.config.max_position_embeddings

    @torch.inference_mode()
    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts, padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(device)
        output = model(**tokens)
        if pooling == "pooler":
            return output.pooler_output
        if pooling == "cls":
            return output.last_hidden_state[:, 0]
        mask = tokens["attention_mask"][..., None]
        return (output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)

    return encode
