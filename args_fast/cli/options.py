"""The options of decoding that several subcommands share."""

from typing import Annotated

import typer

DECODING = "Decoding"

K = Annotated[
    int,
    typer.Option(
        min=1,
        max=128,
        help="Candidates per step, the k most likely tokens; 1 is greedy decoding.",
        metavar="N",
        rich_help_panel=DECODING,
    ),
]
W = Annotated[
    float,
    typer.Option(
        help="Weight of the reward in log p + w * r; 0 leaves the reward model out. "
        "Useful values depend on the scale of the rewards; the paper's are 0.5 to 2.",
        metavar="X",
        rich_help_panel=DECODING,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Above 0: draw from softmax(score / temperature) over the candidates. "
        "Without it, or at 0, the best candidate is taken.",
        metavar="X",
        rich_help_panel=DECODING,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Of the draws; the same seed, the same text.",
        metavar="N",
        rich_help_panel=DECODING,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option(min=1, help="Upper bound on new tokens.", metavar="N", rich_help_panel=DECODING),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="End at this text and cut before it; a special token ends at its id. May be repeated.",
        metavar="TEXT",
        rich_help_panel=DECODING,
    ),
]
Eos = Annotated[
    list[int] | None,
    typer.Option(
        "--eos",
        min=0,
        help="End at this token id; may be repeated. Without it the model's own end tokens.",
        metavar="ID",
        rich_help_panel=DECODING,
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Ask as a user does: the text becomes a message, which goes through the tokenizer's "
        "chat template. Without it text is decoded as it is.",
        rich_help_panel=DECODING,
    ),
]
