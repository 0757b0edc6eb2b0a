"""Results of an evaluation as results.json holds them, made up."""


def value(mean, low, high, gain=(0.0, 0.0, 0.0), count=4, skipped=0):
    names = ("mean", "low", "high")
    return {
        **dict(zip(names, (mean, low, high), strict=True)),
        "count": count,
        "skipped": skipped,
        "gain": {**dict(zip(names, gain, strict=True)), "count": count},
    }


def nothing():
    return value(None, None, None, (None, None, None), count=0)


def spread(median, low, high):
    return {"median": median, "low": low, "high": high}


def method(key, label, measures, *, options=None, speed=None, ratio=2.5, rows=(1, 0), errors=0):
    return {
        "method": key,
        "label": label,
        "kind": key.partition(":")[0],
        "options": options or {},
        "answered": 4 - errors,
        "errors": errors,
        "measures": measures,
        "compression_ratio": ratio,
        "rows_per_token": {"lm": rows[0], "rm": rows[1]},
        "speed": speed,
    }


GREEDY = {
    "reward": value(0.7, 0.5, 0.9),
    "judge:gold": value(2.0, 1.0, 3.0),
    "diversity": value(0.5, 0.4, 0.6),
    "perplexity": value(1.5, 1.4, 1.6),
    "tokens": value(8.0, 8.0, 8.0),
}
GUIDED = {
    "reward": value(1.2, 1.0, 1.5, (0.5, 0.3, 0.7)),
    "judge:gold": value(2.5, 1.5, 3.5, (0.5, None, None), count=3, skipped=1),
    "diversity": value(0.8, 0.7, 0.9),
    "perplexity": value(1.7, 1.5, 1.9),
    "tokens": value(7.5, 7.0, 8.0),
}
RESULTS = {
    "settings": {"data": "hh:held.jsonl", "max_new_tokens": 8},
    "baseline": "greedy",
    "prompts": {"count": 4, "too_long": 2, "hash": "sha256:0"},
    "judges": {"gold": "org/gold"},
    "encoder": None,
    "words": "nltk words, regular expression for sentences",
    "methods": [
        method(
            "greedy",
            "greedy",
            GREEDY,
            speed={
                "milliseconds_per_token": spread(1.0, 0.9, 1.1),
                "slowdown": spread(1.0, 1.0, 1.0),
            },
        ),
        method(
            "args-greedy:w=1.5,k=10",
            "<b>|ARGS",
            GUIDED,
            options={"w": 1.5, "k": 10},
            speed={
                "milliseconds_per_token": spread(2.0, 1.9, 2.1),
                "slowdown": spread(2.1, 2.0, 2.2),
            },
            rows=(1, 10),
        ),
        method("policy:path=x", "broken", dict.fromkeys(GREEDY, nothing()), ratio=None, errors=4),
    ],
    "speed": {"tokens": 8, "batch": 1, "device": "cpu"},
    "environment": {"versions": {}, "commit": None, "processor": "", "hashes": {}},
}
