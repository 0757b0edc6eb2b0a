"""The options that several subcommands share: which models, and how to decode."""

from enum import Enum
from typing import Annotated

import typer

MODELS, DECODING = "Models", "Decoding"


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Lm = Annotated[
    str | None,
    typer.Option(
        help="Language model: a folder or hub id.", metavar="MODEL", rich_help_panel=MODELS
    ),
]
Rm = Annotated[
    str | None,
    typer.Option(
        help="Reward model: a folder or hub id; one label, and the same tokenizer. "
        "Without --lm and --rm, a tiny pair that is part of the package is used.",
        metavar="MODEL",
        rich_help_panel=MODELS,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (CUDA where there is one), cpu, cuda or cuda:N.",
        metavar="NAME",
        rich_help_panel=MODELS,
    ),
]
RmDevice = Annotated[
    str | None,
    typer.Option(
        "--rm-device",
        help="Another GPU for the reward model, cuda:N; without it both models share --device.",
        metavar="NAME",
        rich_help_panel=MODELS,
    ),
]
DtypeName = Annotated[
    Dtype,
    typer.Option(
        help="auto (as saved; on the CPU float32), float32, bfloat16 or float16.",
        metavar="NAME",
        show_choices=False,
        rich_help_panel=MODELS,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the models.",
        rich_help_panel=MODELS,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Run both models through torch.compile: minutes once, then fewer and larger kernels.",
        rich_help_panel=MODELS,
    ),
]
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
