"""Keep the critic of a Stable-Baselines3 agent plastic.

pip install 'plastibench[sb3]'

    python examples/stable_baselines3_agent.py
    python examples/stable_baselines3_agent.py --timesteps 50000
"""

from __future__ import annotations

import argparse

from stable_baselines3 import DQN

from plastibench.integrations.stable_baselines3 import PlasticityCallback


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--timesteps", type=int, default=3000)
    timesteps = parser.parse_args().timesteps
    agent = DQN("MlpPolicy", "CartPole-v1", learning_starts=500, seed=0, device="cpu", verbose=0)
    callback = PlasticityCallback("redo", every=1000, roles=["critic"], target_policy="copy", verbose=1)
    agent.learn(timesteps, callback=callback)
    agent.save("agent.zip")
    callback.save("callback.pt")


if __name__ == "__main__":
    main()
