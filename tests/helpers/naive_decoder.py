"""The decoder's public face over two models, computed naively: what evaluations are tested on.

It has the documented shapes of ``generate``, ``complete``, ``rewards``, ``token_rewards`` and
``score``, candidates included, and no engine.
"""

import functools
import math

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from args_fast import tiny_pair
from args_fast.errors import ArgsError, LengthError
from args_fast.generation import Candidate, Generation


class NaiveDecoder:
    device = torch.device("cpu")
    max_batch_size = 32

    def __init__(self, lm, rm, tokenizer, longest=math.inf):
        self.language_model = lm
        self.reward_model = rm
        self.tokenizer = tokenizer
        self.longest = longest
        self.decoded = 0  # requests

    def generate(self, prompts, config=None):
        if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
            prompts = [prompts]
        found = []
        for _, result in self.complete((prompt, config) for prompt in prompts):
            if isinstance(result, ArgsError):
                raise result
            found.append(result)
        return found

    def complete(self, requests):
        for index, (prompt, config) in enumerate(requests):
            self.decoded += 1
            ids = self.ids(prompt)
            if len(ids) + config.max_new_tokens > self.longest:
                yield index, LengthError(f"{len(ids)} tokens are too many")
                continue
            for sample in config.samples():
                yield index, self._decode(ids, sample)

    def ids(self, prompt):
        if isinstance(prompt, str):
            return self.tokenizer(prompt).input_ids
        if isinstance(prompt[0], dict):
            text = self.tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True
            )
            return self.tokenizer(text, add_special_tokens=False).input_ids
        return list(prompt)

    @torch.inference_mode()
    def _decode(self, prompt, config):
        eos = self.language_model.generation_config.eos_token_id
        ends = {eos} if config.eos_token_ids is None else set(config.eos_token_ids)
        noise, x, steps, reason = config.noise(), list(prompt), [], "length"
        chosen = []
        for t in range(config.max_new_tokens):
            logits = self.language_model(torch.tensor([x])).logits[0, -1]
            logprobs, ids = logits.float().log_softmax(dim=-1).topk(config.k)
            rewards = torch.full((config.k,), math.nan)
            if config.consults_reward:
                texts = torch.tensor([[*x, v] for v in ids.tolist()])
                rewards = self.reward_model(texts).logits[:, -1]
            scores = logprobs if config.w == 0 else logprobs + config.w * rewards
            drawn = scores if config.temperature is None else scores / config.temperature + noise[t]
            best = 0 if config.k == 1 else int(drawn.argmax())
            columns = (ids.tolist(), logprobs.tolist(), rewards.tolist(), scores.tolist())
            steps.append(tuple(Candidate(*row) for row in zip(*columns, strict=True)))
            chosen.append(steps[-1][best])
            x.append(chosen[-1].token_id)
            if x[-1] in ends:
                reason = "eos"
                break
            if any(stop in self._text(x[len(prompt) :]) for stop in config.stop):
                reason = "stop"
                break
        text = self._text(x[len(prompt) :])
        for stop in config.stop:
            text = text.partition(stop)[0]
        return Generation(
            x[len(prompt) :],
            text,
            [c.logprob for c in chosen],
            [c.reward for c in chosen],
            [c.score for c in chosen],
            reason,
            list(prompt),
            steps if config.return_candidates else None,
        )

    def rewards(self, prompts, continuations):
        pairs = zip(prompts, continuations, strict=True)
        return [self._reward([*self.ids(prompt), *ids]) for prompt, ids in pairs]

    def token_rewards(self, prompt, continuation):
        start, text = len(self.ids(prompt)), [*self.ids(prompt), *continuation]
        return [self._reward(text[:end]) for end in range(start + 1, len(text) + 1)]

    @torch.inference_mode()
    def _reward(self, text):
        if len(text) > self.longest:
            raise LengthError("too long for the reward")
        return self.reward_model(torch.tensor([text])).logits[0, -1].item()

    @torch.inference_mode()
    def score(self, prompts):
        found = []
        for prompt in map(self.ids, prompts):
            logprobs = self.language_model(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)
            said = [logprobs[t, token].item() for t, token in enumerate(prompt[1:])]
            found.append([math.nan, *said])
        return found

    def _text(self, ids):
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


@functools.cache
def tiny_models():
    return (
        AutoModelForCausalLM.from_pretrained(tiny_pair.LM, dtype=torch.float32).eval(),
        AutoModelForSequenceClassification.from_pretrained(
            tiny_pair.RM, dtype=torch.float32
        ).eval(),
        AutoTokenizer.from_pretrained(tiny_pair.LM),
    )


def naive_tiny_decoder(**options):
    return NaiveDecoder(*tiny_models(), **options)
