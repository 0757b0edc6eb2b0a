"""Similarity to a given text as a reward, by sentence-transformers:

pip install sentence-transformers
python examples/rewards/similarity.py all-MiniLM-L6-v2 "Use the shade of a tree."
"""

import argparse

from sentence_transformers import SentenceTransformer

from args_fast.rewards import Function


class Similarity:
    """The cosine between the embeddings of the response and of a text."""

    def __init__(self, encoder: SentenceTransformer, text: str) -> None:
        self.encoder = encoder
        self.target = encoder.encode([text], normalize_embeddings=True)[0]

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        embeddings = self.encoder.encode(
            responses, normalize_embeddings=True, show_progress_bar=False
        )
        return (embeddings @ self.target).tolist()


if __name__ == "__main__":
    from show import show

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("encoder", help="a folder or hub id for sentence-transformers")
    parser.add_argument("text", help="what responses should be like")
    chosen = parser.parse_args()
    show(Function(Similarity(SentenceTransformer(chosen.encoder), chosen.text)), w=10.0)
