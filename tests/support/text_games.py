"""Ordinary gymnasium environments of text, which know nothing of forks: what `ReplayEnv` is tested on."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

Info = dict[str, Any]
Step = tuple[str, float, bool, bool, Info]


class GuessEnv(gymnasium.Env[str, str]):
    """Guess a number from 1 to 8. One hint in four is a lie, drawn from `np_random`."""

    lies: float = 0.25

    def __init__(self) -> None:
        self.observation_space = spaces.Text(100)
        self.action_space = spaces.Text(1, charset="12345678")

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        self.secret = int(self.np_random.integers(1, 9))
        self.guesses = 0
        if options and "task" in options:
            self.secret = int(options["task"])
        return "Guess a number from 1 to 8.", {"guesses": np.int64(0)}

    def step(self, action: str) -> Step:
        guess = int(action)
        self.guesses += 1
        info: Info = {"guesses": np.int64(self.guesses), "game": self, "role": "dealer"}
        if guess == self.secret:
            return "Right.", 1.0, True, False, {**info, "success": np.True_}
        truth = guess < self.secret
        hint = truth if self.draw() >= self.lies else not truth
        return f"{'Higher' if hint else 'Lower'} than {guess}.", 0.0, False, False, info

    def draw(self) -> float:
        return float(self.np_random.random())

    def expert_action(self) -> str:
        return str(self.secret)


class HonestGuessEnv(GuessEnv):
    """Without noise."""

    def draw(self) -> float:
        return 1.0


class CapturedGuessEnv(GuessEnv):
    """Holds on to its generator under another name."""

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[str, Info]:
        shown = super().reset(seed=seed, options=options)
        self.dice = self.np_random
        return shown

    def draw(self) -> float:
        return float(self.dice.random())


class MoodyGuessEnv(GuessEnv):
    """Not a function of seed and actions: its mood gets worse with every episode of the process."""

    episodes: ClassVar[int] = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[str, Info]:
        type(self).episodes += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> Step:
        observation, reward, terminated, truncated, info = super().step(action)
        return f"{observation} ({self.episodes})", reward, terminated, truncated, info


class DullEnv(gymnasium.Env[str, str]):
    """Has no scripted solution, and nothing to solve."""

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[str, Info]:
        super().reset(seed=seed)
        return "", {}


class DiceEnv(gymnasium.Env[Any, str]):
    """Not an environment of text."""

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[int, Info]:
        super().reset(seed=seed)
        return 6, {}


gymnasium.register("tests/Guess-v0", entry_point="tests.support.text_games:GuessEnv", max_episode_steps=6)
