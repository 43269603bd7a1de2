import loadMujoco from "@mujoco/mujoco";
import { expect, test } from "vitest";
import { ROBOTS } from "../src/robots";
import { Simulation } from "../src/simulation";
import { float64, loadModel, loadPolicy, recording } from "./recordings";

const mujoco = await loadMujoco();

/**
 * Two versions of MuJoCo on two machines round differently, by 1e-14. Hopper and Walker2d keep that
 * small: 1e-9 after 100 steps is far below what a wrong model, clip or reward would make. HalfCheetah
 * with the same actions is chaotic: the difference grows tenfold in about three of its steps of 50 ms, and
 * is the size of the robot after 70. So its simulation is set to the recorded state again every 20
 * steps, which costs the solver its warm start.
 */
const TOLERANCE = { Hopper: 1e-9, Walker2d: 1e-9, HalfCheetah: 1e-6 };
const RESTART = { Hopper: Infinity, Walker2d: Infinity, HalfCheetah: 20 };

for (const robot of ROBOTS) {
  const name = robot.name as keyof typeof TOLERANCE;
  test(`${name}: the first steps are Gymnasium's`, () => {
    const { episodes, environment } = recording(robot.policy);
    const physics = episodes[0].physics!;
    const [start, actions, observations, rewards] = [
      float64(physics.start),
      float64(physics.actions),
      float64(physics.observations),
      float64(physics.rewards),
    ];
    const simulation = new Simulation(mujoco, robot, loadModel(robot.model));
    const { nq, nu } = simulation.model;
    expect(environment).toBe(robot.environment);
    simulation.setState(start.subarray(0, nq), start.subarray(nq));
    const size = observations.length / physics.steps;
    const row = (step: number) => observations.subarray(step * size, (step + 1) * size);
    let [worst, worstReward] = [0, 0];
    for (let step = 0; step < physics.steps; step++) {
      if (step > 0 && step % RESTART[name] === 0) {
        const seen = row(step - 1);
        simulation.setState([0, ...seen.subarray(0, nq - 1)], seen.subarray(nq - 1));
      }
      const outcome = simulation.step(actions.subarray(step * nu, (step + 1) * nu));
      simulation.observation().forEach((value, i) => {
        worst = Math.max(worst, Math.abs(value - row(step)[i]));
      });
      worstReward = Math.max(worstReward, Math.abs(outcome.reward - rewards[step]));
      expect(outcome.fallen).toBe(false);
    }
    expect(physics.steps).toBe(100);
    expect(worst).toBeLessThan(TOLERANCE[name]);
    expect(worstReward).toBeLessThan(TOLERANCE[name]);
    simulation.delete();
  });

  test(`${name}: the policy runs, and a push and a fall are noticed`, () => {
    const simulation = new Simulation(mujoco, robot, loadModel(robot.model));
    const policy = loadPolicy(robot.policy);
    // From a start that is known to end well: the policies fall from some.
    const start = float64(recording(robot.policy).episodes[0].physics!.start);
    simulation.setState(start.subarray(0, simulation.model.nq), start.subarray(simulation.model.nq));
    policy.begin(policy.config.evaluation.target_returns[0]);
    let [reward, steps, fallen] = [0, 0, false];
    for (; steps < 200 && !fallen; steps++) {
      ({ reward, fallen } = simulation.step(policy.act(simulation.observation(), reward)));
    }
    expect(steps).toBe(200);
    expect(simulation.distance).toBeGreaterThan(1);
    simulation.reset(); // standing: no foot can catch the push
    expect(simulation.distance).toBeLessThan(0.2);
    const before = (simulation.data.qvel as Float64Array)[0];
    simulation.push();
    simulation.step(new Float64Array(simulation.model.nu));
    expect((simulation.data.qvel as Float64Array)[0]).toBeGreaterThan(before + 0.05);
    if (robot.healthy !== null) {
      const positions = new Float64Array(simulation.model.nq);
      positions[1] = robot.healthy.height[0] - 0.1;
      simulation.setState(positions, new Float64Array(simulation.model.nv));
      expect(simulation.step(new Float64Array(simulation.model.nu)).fallen).toBe(true);
    }
    simulation.delete();
  });
}
