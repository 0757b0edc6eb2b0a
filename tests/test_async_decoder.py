"""Many tasks, one engine: each gets its own tokens, and whoever leaves leaves nothing behind."""

import asyncio
import copy
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from refusals import refuses
from tiny_models import decoder, language_model, reward_model, tokens

from args_fast import ArgsDecoder, AsyncArgsDecoder, DecodingConfig, ops
from args_fast.errors import (
    BackendError,
    ConfigError,
    DecoderBusyError,
    DecoderClosedError,
    NonFiniteError,
    PromptError,
)

CONFIG = DecodingConfig(k=7, w=1.5, max_new_tokens=20, eos_token_ids=[])
SAMPLED = DecodingConfig(k=5, temperature=0.7, seed=3, max_new_tokens=15, eos_token_ids=[])
GREEDY = DecodingConfig(k=1, max_new_tokens=25, eos_token_ids=[])
LONG = DecodingConfig(k=5, max_new_tokens=60, eos_token_ids=[])
REQUESTS = [
    (tokens(length, seed=i), (CONFIG, SAMPLED, GREEDY)[i % 3])
    for i, length in enumerate([1, 15, 16, 17, 32, 3, 40, 8, 21])
]


def run(work):
    """Every test has an end, also when the engine hangs."""
    return asyncio.run(asyncio.wait_for(work, 120))


def own(**options):
    return ArgsDecoder(language_model(), reward_model(), **options)


async def collect(engine, prompt, config):
    return [token async for token in engine.stream(prompt, config)]


async def idle(pair):
    while pair.cache.pages_in_use:
        await asyncio.sleep(0.01)


def test_streams_and_lists_at_once_get_what_they_get_alone():
    expected = [decoder().generate(*request)[0] for request in REQUESTS]

    async def work():
        async with AsyncArgsDecoder(own()) as engine:
            streams = [collect(engine, *request) for request in REQUESTS]
            lists = [engine.generate(*request) for request in REQUESTS]
            return await asyncio.gather(*streams), await asyncio.gather(*lists)

    streams, lists = run(work())
    for stream, (result,), wanted in zip(streams, lists, expected, strict=True):
        assert [token.token_id for token in stream] == result.token_ids == wanted.token_ids
        assert stream[-1].finish_reason == wanted.finish_reason
        assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4, nan_ok=True)


def test_a_list_comes_in_order_with_all_its_samples():
    config = DecodingConfig(
        k=5, temperature=2.0, max_new_tokens=9, eos_token_ids=[], num_return_sequences=3
    )
    prompts = [tokens(20), tokens(5)]
    expected = decoder().generate(prompts, config)

    async def work():
        async with AsyncArgsDecoder(own()) as engine:
            return await engine.generate(prompts, config)

    assert [r.token_ids for r in run(work())] == [e.token_ids for e in expected]


def test_a_list_may_have_options_for_each():
    prompts, configs = zip(*REQUESTS, strict=True)
    expected = [decoder().generate(*request)[0] for request in REQUESTS]

    async def work():
        async with AsyncArgsDecoder(own()) as engine:
            with refuses(ConfigError, "list of 1", "prompts"):
                await engine.generate(prompts, configs[:1])
            return await engine.generate(prompts, configs)

    for result, wanted in zip(run(work()), expected, strict=True):
        assert result.token_ids == wanted.token_ids


def test_a_decoder_is_in_one_hand_at_a_time():
    pair = own()

    async def work():
        async with AsyncArgsDecoder(pair):
            with refuses(ConfigError, "another AsyncArgsDecoder"):
                AsyncArgsDecoder(pair)
        async with AsyncArgsDecoder(pair) as engine:
            return await engine.generate(*REQUESTS[0])

    assert len(run(work())) == 1


def test_a_loop_that_is_gone_does_not_stop_the_engine(monkeypatch):
    async def work():
        async with AsyncArgsDecoder(own()) as engine:
            loop = asyncio.get_running_loop()
            deliver = loop.call_soon_threadsafe

            def closed(function, *args):
                monkeypatch.setattr(loop, "call_soon_threadsafe", deliver)
                raise RuntimeError("Event loop is closed")

            monkeypatch.setattr(loop, "call_soon_threadsafe", closed)
            lost = asyncio.ensure_future(engine.generate(*REQUESTS[0]))
            while loop.call_soon_threadsafe is closed:
                await asyncio.sleep(0.01)
            lost.cancel()
            return await engine.generate(*REQUESTS[1])

    assert len(run(work())) == 1


@pytest.mark.parametrize("how", ["close", "cancel"])
def test_whoever_leaves_frees_the_pages_and_the_others_go_on(how):
    (expected,) = decoder().generate(*REQUESTS[0])

    async def leave(engine):
        stream = engine.stream(tokens(30), LONG)
        await anext(stream)
        if how == "close":
            await stream.aclose()
            return
        task = asyncio.ensure_future(collect(engine, tokens(30), LONG))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()

    async def work():
        pair = own()
        async with AsyncArgsDecoder(pair) as engine:
            _, (result,) = await asyncio.gather(leave(engine), engine.generate(*REQUESTS[0]))
            await idle(pair)
            assert not pair.engine.busy
            return result

    assert run(work()).token_ids == expected.token_ids


def test_a_cancelled_list_is_called_off():
    async def work():
        pair = own()
        async with AsyncArgsDecoder(pair) as engine:
            task = asyncio.ensure_future(engine.generate([tokens(30), tokens(9)], LONG))
            while not pair.cache.pages_in_use:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await idle(pair)

    run(work())


def test_back_pressure_holds_calls_that_would_wait_too_long():
    async def work():
        pair = own(max_batch_size=2)
        async with AsyncArgsDecoder(pair, max_waiting=1) as engine:
            tasks = [asyncio.ensure_future(engine.generate(*request)) for request in REQUESTS]
            most = 0
            while not all(task.done() for task in tasks):
                most = max(most, len(engine._calls))
                await asyncio.sleep(0.001)
            return most, [task.result()[0].token_ids for task in tasks]

    most, results = run(work())
    assert 0 < most <= 3
    assert results == [decoder().generate(*request)[0].token_ids for request in REQUESTS]


def test_a_bad_request_is_the_callers_alone():
    async def work():
        async with AsyncArgsDecoder(own()) as engine:
            good = asyncio.ensure_future(engine.generate(*REQUESTS[0]))
            with refuses(PromptError, "at least one"):
                await engine.generate([[]], CONFIG)
            with refuses(PromptError, "no tokenizer"):
                await anext(engine.stream("text", CONFIG))
            with refuses(ConfigError, "num_return_sequences is 2"):
                await anext(engine.stream([5], DecodingConfig(num_return_sequences=2)))
            return await good

    assert run(work())[0].token_ids == decoder().generate(*REQUESTS[0])[0].token_ids


def test_a_broken_reward_fails_those_that_it_concerns():
    async def work():
        pair = ArgsDecoder(language_model(), copy.deepcopy(reward_model()))
        pair.engine.panel.rewards["reward"].head_weight[:] = float("nan")
        async with AsyncArgsDecoder(pair) as engine:
            greedy = asyncio.ensure_future(engine.generate([5, 6], GREEDY))
            with refuses(NonFiniteError, "reward model"):
                await engine.generate([5, 6], CONFIG)
            with refuses(NonFiniteError, "reward model"):
                await collect(engine, [5, 6], CONFIG)
            assert len((await greedy)[0].token_ids) == 25
            await idle(pair)

    run(work())


def test_a_model_that_fails_fails_all_calls_and_none_that_come_later():
    async def work():
        pair = ArgsDecoder(copy.deepcopy(language_model()), reward_model())

        def fail(*_):
            raise MemoryError("made up")

        async with AsyncArgsDecoder(pair) as engine:
            hook = pair.language_model.lm_head.register_forward_pre_hook(fail)
            tasks = [engine.generate(*REQUESTS[0]), collect(engine, *REQUESTS[1])]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [MemoryError, MemoryError]
            hook.remove()
            await idle(pair)
            return await engine.generate(*REQUESTS[0])

    assert run(work())[0].token_ids == decoder().generate(*REQUESTS[0])[0].token_ids


def test_beginnings_are_kept_while_it_is_open():
    async def work():
        pair = own()
        async with AsyncArgsDecoder(pair) as engine:
            await engine.generate(tokens(40), CONFIG)
            await engine.generate([*tokens(40), 7], CONFIG)
            assert pair.cache.shared_tokens == 32
        await pair_is_as_before(pair)

    async def pair_is_as_before(pair):
        before = pair.cache.shared_tokens
        pair.generate(tokens(40), CONFIG)
        assert pair.cache.shared_tokens == before

    run(work())


def test_the_end_calls_off_what_is_calls():
    async def work():
        pair = own()
        engine = AsyncArgsDecoder(pair)
        waiting = asyncio.ensure_future(engine.generate(tokens(30), LONG))
        stream = engine.stream(tokens(9), LONG)
        await anext(stream)
        await engine.close()
        with refuses(DecoderClosedError, "has been closed"):
            await waiting
        with refuses(DecoderClosedError, "has been closed"):
            async for _ in stream:
                pass
        with refuses(DecoderClosedError, "has been closed"):
            await engine.generate([5], CONFIG)
        await engine.close()  # once more does no harm
        assert pair.cache.pages_in_use == 0
        assert not engine._thread.is_alive()
        assert len(pair.generate([5], CONFIG)[0].token_ids) == 20

    run(work())


def test_the_event_loop_is_free_while_the_engine_works():
    async def work():
        pair = own()
        hook = pair.language_model.lm_head.register_forward_pre_hook(lambda *_: time.sleep(0.05))
        async with AsyncArgsDecoder(pair) as engine:
            task = asyncio.ensure_future(engine.generate([5], CONFIG))
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.005)
                ticks += 1
            hook.remove()
            return ticks

    assert run(work()) > 20


def test_a_forced_backend_is_forced_in_the_thread_too():
    async def work():
        pair = own()
        with ops.use_backend("abacus"):
            engine = AsyncArgsDecoder(pair)
        with refuses(BackendError, "'abacus'"):
            await engine.generate([5], CONFIG)
        await engine.close()

    run(work())


def test_no_room_for_those_who_wait():
    with refuses(ConfigError, "max_waiting is -1", "at least 0"):
        AsyncArgsDecoder(decoder(), max_waiting=-1)
    assert not [t for t in threading.enumerate() if t.name == "args-fast" and not t.daemon]


def test_decode_hands_over_the_tokens_of_a_stream():
    expected = [decoder().generate(*request)[0] for request in REQUESTS]

    async def work():
        async with AsyncArgsDecoder(own(), max_unread=1) as engine:
            received = [[] for _ in REQUESTS]
            calls = zip(REQUESTS, received, strict=True)
            await asyncio.gather(*(engine.decode(*request, own.extend) for request, own in calls))
            return received

    for tokens_of_one, wanted in zip(run(work()), expected, strict=True):
        assert [token.token_id for token in tokens_of_one] == wanted.token_ids
        assert tokens_of_one[-1].finish_reason == wanted.finish_reason


@pytest.mark.parametrize("how", ["cancelled", "receiver", "engine"])
def test_decode_that_ends_early_frees_its_pages(how):
    def refuse(new):
        raise MemoryError("made up")

    async def work():
        pair = own()
        async with AsyncArgsDecoder(pair) as engine:
            if how == "receiver":
                with pytest.raises(MemoryError, match="made up"):
                    await engine.decode(tokens(30), LONG, refuse)
            elif how == "engine":
                with refuses(PromptError, "0 were given"):
                    await engine.decode([], LONG, refuse)
            else:
                begun = asyncio.Event()
                work = engine.decode(tokens(30), LONG, lambda new: begun.set())
                task = asyncio.ensure_future(work)
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await idle(pair)
            return await engine.generate(*REQUESTS[0])

    assert len(run(work())) == 1


def test_a_step_wakes_the_loop_once_for_all(monkeypatch):
    async def work():
        pair = own()
        async with AsyncArgsDecoder(pair) as engine:
            loop, woken, steps = asyncio.get_running_loop(), [], []
            wake, step = loop.call_soon_threadsafe, pair.engine.step
            monkeypatch.setattr(
                loop, "call_soon_threadsafe", lambda *args: (woken.append(1), wake(*args))
            )
            monkeypatch.setattr(pair.engine, "step", lambda: (steps.append(1), step()))
            await asyncio.gather(*(engine.decode(*r, lambda new: None) for r in REQUESTS))
            return len(woken), len(steps)

    woken, steps = run(work())
    assert 0 < woken <= steps


# ---- streams that are not read -------------------------------------------------------------------


def test_a_stream_that_is_not_read_is_paused_and_resumes_with_the_same_tokens():
    config = DecodingConfig(k=4, max_new_tokens=40, eos_token_ids=[])
    expected = decoder().generate(tokens(9), config)[0].token_ids

    async def work():
        pair = own(max_batch_size=2)
        async with AsyncArgsDecoder(pair, max_unread=5) as engine:
            idle = engine.stream(tokens(9), config)
            begun = [(await anext(idle)).token_id]
            while engine.running or engine.waiting:  # it is decoded a little ahead, then paused
                await asyncio.sleep(0.001)
            assert pair.cache.pages_in_use == 0
            assert len(pair.engine.bursts.runner("reward").requests_in_flight) == 0
            others = await engine.generate([tokens(5), tokens(6)], config)
            assert [len(other.token_ids) for other in others] == [40, 40]
            return begun + [token.token_id async for token in idle]

    assert run(work()) == expected


def test_idle_readers_block_no_one():
    config = DecodingConfig(k=4, max_new_tokens=30, eos_token_ids=[])

    async def work():
        pair = own(max_batch_size=2)
        async with AsyncArgsDecoder(pair, max_waiting=0, max_unread=3) as engine:
            kept = [engine.stream(tokens(9, seed=i), config) for i in range(6)]
            for stream in kept:
                async for _ in stream:
                    break  # left in the middle, and kept in a variable
            result = await asyncio.wait_for(engine.generate(tokens(5), config), 60)
            assert pair.cache.pages_in_use == 0
            return result[0].token_ids

    assert run(work()) == decoder().generate(tokens(5), config)[0].token_ids


# ---- who may use a decoder -----------------------------------------------------------------------


def test_next_to_an_open_async_decoder_the_decoder_refuses_and_names_it():
    async def work():
        pair = own()
        async with AsyncArgsDecoder(pair):
            for use in (
                lambda: pair.generate(*REQUESTS[0]),
                lambda: list(pair.stream(*REQUESTS[0])),
                lambda: pair.score(tokens(5)),
                lambda: pair.token_rewards(tokens(5), [7]),
            ):
                with refuses(DecoderBusyError, "AsyncArgsDecoder"):
                    await asyncio.to_thread(use)
        return pair.generate(*REQUESTS[0])[0].token_ids

    assert run(work()) == decoder().generate(*REQUESTS[0])[0].token_ids


def test_threads_take_turns():
    pair = own()
    expected = [decoder().generate(*request)[0].token_ids for request in REQUESTS]
    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(pair.generate, *request) for request in REQUESTS * 4]
        streams = [pool.submit(lambda r: list(pair.stream(*r)), request) for request in REQUESTS]
        results = [future.result()[0].token_ids for future in futures]
        streamed = [[token.token_id for token in future.result()] for future in streams]
    assert results == expected * 4
    assert streamed == expected
    assert pair.cache.pages_in_use == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_after_a_fork_the_child_is_refused():
    pair = own()
    pair.generate(*REQUESTS[0])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pair.generate(*REQUESTS[0])
            message = "decoded"
        except BaseException as error:
            message = f"{type(error).__name__}: {error}"
        os.write(write, message.encode())
        os._exit(0)
    os.waitpid(child, 0)
    message = os.read(read, 1000).decode()
    assert message.startswith("DecoderBusyError")
    assert "another process" in message
    assert "AsyncArgsDecoder" in message


def test_scores_and_rewards_come_between_bursts():
    async def work():
        async with AsyncArgsDecoder(own()) as engine:
            decoding = asyncio.ensure_future(engine.generate(*REQUESTS[0]))
            scores = await engine.score([tokens(9), tokens(4)])
            along = await engine.token_rewards(tokens(9), [7, 8])
            await decoding
            return scores, along

    scores, along = run(work())
    logits = language_model()(torch.tensor([tokens(9)])).logits[0].log_softmax(-1)
    naive = [logits[i, token].item() for i, token in enumerate(tokens(9)[1:])]
    assert math.isnan(scores[0][0])
    assert scores[0][1:] == pytest.approx(naive, abs=1e-4)
    assert [len(one) for one in scores] == [9, 4]
    assert along == pytest.approx(decoder().token_rewards(tokens(9), [7, 8]))
