"""Several rewards at once: a weighted sum, and the names by which requests choose among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from args_fast.errors import ConfigError
from args_fast.rewards.base import Reward
from args_fast.rewards.loading import as_reward


class Mixture:
    """r = the sum of weight · r_i over several rewards, each of which reads in its own way.

    A mixture stands for the reward model in ``ArgsDecoder``, alone or among others by name. Its
    parts keep their names, so a request may weigh them in another way (``DecodingConfig.reward``)
    and ``Generation.rewards_by_name`` has their raw values.

    Args:
        parts: rewards (or reward models) with their weights; a mixture may be a part.
        names: of the parts, in their order; None for the rewards' own names.

    Raises:
        ConfigError: there are no parts, a weight is not a finite number, or a name occurs twice.
    """

    def __init__(
        self, parts: Sequence[tuple[Any, float]], names: Sequence[str] | None = None
    ) -> None:
        pairs = [_pair(part) for part in parts]
        if not pairs:
            raise ConfigError("a Mixture needs parts: Mixture([(reward, 0.7), (another, 0.3)])")
        if names is not None and len(names) != len(pairs):
            raise ConfigError(
                f"names has {len(names)} entries for {len(pairs)} rewards; give one for each"
            )
        self.parts: list[tuple[str, Reward, float]] = []
        for i, (part, weight) in enumerate(pairs):
            if isinstance(part, Mixture):
                self.parts += [(name, r, weight * w) for name, r, w in part.parts]
                continue
            reward = as_reward(part)
            self.parts.append((reward.name if names is None else names[i], reward, weight))
        by_name = {name: reward for name, reward, _ in self.parts}
        for name, reward, _ in self.parts:
            if by_name[name] is not reward:
                raise ConfigError(
                    f"two rewards of this Mixture have the name {name!r}; give them names of their "
                    "own: Mixture([...], names=['helpful', 'safe'])"
                )


def _pair(part: Any) -> tuple[Any, float]:
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        raise ConfigError(f"a part of a Mixture is {part!r}; it must be (reward, weight)")
    reward, weight = part
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not isfinite(weight):
        raise ConfigError(f"a weight of a Mixture is {weight!r}; it must be a finite number")
    return reward, float(weight)


@dataclass
class NamedRewards:
    """The rewards of a decoder, and what a request may call for.

    Attributes:
        rewards: each reward, by its name.
        shares: for each name that was given to the decoder, the weights of the rewards that it
            stands for: itself, or the parts of a mixture.
    """

    rewards: dict[str, Reward] = field(default_factory=dict)
    shares: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, rm: Any) -> "NamedRewards":
        """From whatever stands for the reward of a decoder: a reward, a model, a mixture, or
        several of these by name. Raises ArgsError."""
        named = cls()
        if isinstance(rm, Mixture):
            named._add_mixture("mixture", rm)
        elif not isinstance(rm, Mapping):
            reward = as_reward(rm)
            named._add(reward.name, reward)
        elif not rm:
            raise ConfigError("rm is an empty mapping; name at least one reward")
        else:
            members = {n: r if isinstance(r, Mixture) else as_reward(r) for n, r in rm.items()}
            for name, member in members.items():
                if not isinstance(member, Mixture):
                    named._add(name, member)
            for name, member in members.items():
                if isinstance(member, Mixture):
                    named._add_mixture(name, member)
        return named

    @property
    def names(self) -> list[str]:
        """What a request may name: what was given to the decoder, and the parts of mixtures."""
        return list(dict.fromkeys([*self.shares, *self.rewards]))

    def weights(self, asked: str | Mapping[str, float] | None) -> dict[str, float]:
        """The weight of each reward that guides a request, by name.

        Args:
            asked: ``DecodingConfig.reward``: a name, weights by name, or None for all as given.

        Raises:
            ConfigError: a name is not one of this decoder's.
        """
        if asked is None:
            asked = dict.fromkeys(self.shares, 1.0)
        elif isinstance(asked, str):
            asked = {asked: 1.0}
        weights: dict[str, float] = {}
        for name, factor in asked.items():
            if name not in self.shares and name not in self.rewards:
                names = ", ".join(self.names)
                raise ConfigError(f"reward names {name!r}; this decoder's rewards are {names}")
            for part, weight in self.shares.get(name, {name: 1.0}).items():
                weights[part] = weights.get(part, 0.0) + factor * weight
        return {name: float(weight) for name, weight in weights.items() if weight != 0}

    def _add(self, name: str, reward: Reward) -> None:
        reward.name = name
        self.rewards[name] = reward
        self.shares[name] = {name: 1.0}

    def _add_mixture(self, name: str, mixture: Mixture) -> None:
        shares: dict[str, float] = {}
        for part, reward, weight in mixture.parts:
            known = next((n for n, r in self.rewards.items() if r is reward), None)
            own = known or part
            if known is None and (part in self.rewards or part in self.shares or part == name):
                raise ConfigError(
                    f"two rewards have the name {part!r}; give the parts of the mixture {name!r} "
                    "names of their own: Mixture([...], names=[...])"
                )
            reward.name = own
            self.rewards[own] = reward
            shares[own] = shares.get(own, 0.0) + weight
        self.shares[name] = shares
