"""A second language model's log-probabilities, or one reward per token, as rewards: against a naive
decoder that runs the model over each candidate's whole text."""

import copy

import oracle
import pytest
import torch
import transformers as t
from hypothesis import Phase, settings
from refusals import refuses
from tiny_models import (
    BURSTS,
    CONFIGS,
    IDS,
    decoder,
    language_model,
    tokens,
)
from traffic import LONGEST, REWARD, MixedMargin, Traffic, assert_as_alone, run, scheduler, sequence

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, LengthError, PairMismatchError, UnsupportedModelError
from args_fast.rewards import Autoregressive, Vocabulary
