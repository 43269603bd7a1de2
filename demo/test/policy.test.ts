import { expect, test } from "vitest";
import { ROBOTS } from "../src/robots";
import { float32, loadPolicy, recording } from "./recordings";

for (const robot of ROBOTS) {
  for (const episode of recording(robot.policy).episodes) {
    test(`${robot.name}: the actions of a ${episode.rollout} episode are those of Python`, () => {
      const policy = loadPolicy(robot.policy);
      policy.rolling = episode.rollout === "rolling";
      policy.begin(policy.config.evaluation.target_returns[0]);
      const [observations, rewards, actions] = [
        float32(episode.observations),
        float32(episode.rewards),
        float32(episode.actions),
      ];
      const [observed, acted] = [policy.config.observation_dim, policy.config.action_dim];
      let worst = 0;
      for (let step = 0; step < episode.steps; step++) {
        const seen = observations.subarray(step * observed, (step + 1) * observed);
        const action = policy.act(seen, rewards[step]);
        action.forEach((value, i) => {
          worst = Math.max(worst, Math.abs(value - actions[step * acted + i]));
        });
      }
      expect(episode.steps).toBe(episode.rollout === "carried" ? 1000 : 200);
      expect(worst).toBeLessThan(1e-4);
    });
  }
}

test("forgetting makes the next action that of an episode's first step", () => {
  const robot = ROBOTS[1];
  const observation = new Float64Array(11).fill(0.1);
  const [used, fresh] = [loadPolicy(robot.policy), loadPolicy(robot.policy)];
  used.begin(3000);
  for (let step = 0; step < 9; step++) used.act(observation, 0);
  fresh.begin(3000);
  const remembered = used.act(observation, 0);
  used.forget();
  const forgotten = used.act(observation, 0);
  expect([...forgotten]).toEqual([...fresh.act(observation, 0)]);
  expect([...remembered]).not.toEqual([...forgotten]);
  used.hideVelocities = true;
  used.forget();
  expect([...used.act(observation, 0)]).not.toEqual([...forgotten]);
});
