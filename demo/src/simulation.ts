/** One robot in MuJoCo: observations, rewards and endings as in Gymnasium's v5 environments. */

import type { MainModule, MjData, MjModel } from "@mujoco/mujoco";
import type { Robot } from "./robots";

export interface Outcome {
  reward: number;
  fallen: boolean;
}

/** Seconds for which a push lasts. */
const PUSH_SECONDS = 0.1;

export class Simulation {
  readonly model: MjModel;
  readonly data: MjData;
  /** Seconds between two actions. */
  readonly interval: number;
  /** Seconds of one physics step. */
  readonly timestep: number;
  private action: ArrayLike<number> = [];
  private substeps = 0;
  private before = 0;
  private pushed = 0;

  constructor(
    readonly mujoco: MainModule,
    readonly robot: Robot,
    xml: string,
  ) {
    this.model = mujoco.MjModel.from_xml_string(xml);
    this.data = new mujoco.MjData(this.model);
    this.timestep = this.model.opt.timestep;
    this.interval = this.timestep * robot.frameSkip;
  }

  /** Frees the memory of the physics, which no garbage collector sees. */
  delete(): void {
    this.data.delete();
    this.model.delete();
  }

  /** Stands the robot up, a little scattered as in training. */
  reset(): void {
    const { resetNoise, normalVelocities } = this.robot;
    const uniform = () => resetNoise * (2 * Math.random() - 1);
    const velocity = normalVelocities ? () => resetNoise * normal() : uniform;
    this.mujoco.mj_resetData(this.model, this.data);
    const start = this.model.qpos0 as Float64Array;
    this.setState(start.map((value) => value + uniform()), new Float64Array(this.model.nv).map(velocity));
  }

  setState(positions: ArrayLike<number>, velocities: ArrayLike<number>): void {
    (this.data.qpos as Float64Array).set(positions);
    (this.data.qvel as Float64Array).set(velocities);
    this.mujoco.mj_forward(this.model, this.data);
    this.substeps = 0;
    this.pushed = 0;
  }

  /** Positions without that along the track, then clipped velocities. */
  observation(): Float64Array {
    const [positions, velocities] = [this.data.qpos as Float64Array, this.data.qvel as Float64Array];
    const observed = new Float64Array(positions.length - 1 + velocities.length);
    observed.set(positions.subarray(1));
    const clip = this.robot.velocityClip;
    velocities.forEach((value, i) => {
      observed[positions.length - 1 + i] = Math.min(Math.max(value, -clip), clip);
    });
    return observed;
  }

  /** Position along the track, in metres. */
  get distance(): number {
    return (this.data.qpos as Float64Array)[0];
  }

  /** Takes an action; `advance` then moves the physics through it. */
  begin(action: ArrayLike<number>): void {
    this.action = Array.from(action);
    (this.data.ctrl as Float64Array).set(this.action);
    this.before = this.distance;
    this.substeps = this.robot.frameSkip;
  }

  /** Moves the physics by one step; returns the outcome if it was the last of the action. */
  advance(): Outcome | null {
    const force = this.data.xfrc_applied as Float64Array;
    force[6] = this.pushed > 0 ? this.robot.push : 0; // the torso is body 1; x comes first
    this.pushed = Math.max(0, this.pushed - this.timestep);
    this.mujoco.mj_step(this.model, this.data);
    this.substeps -= 1;
    return this.substeps > 0 ? null : this.outcome();
  }

  /** Takes an action and moves the physics through it. */
  step(action: ArrayLike<number>): Outcome {
    this.begin(action);
    for (;;) {
      const outcome = this.advance();
      if (outcome !== null) return outcome;
    }
  }

  /** Pushes the torso forward. */
  push(): void {
    this.pushed = PUSH_SECONDS;
  }

  private outcome(): Outcome {
    const { controlCost, healthyReward } = this.robot;
    let squares = 0;
    for (let i = 0; i < this.action.length; i++) squares += this.action[i] ** 2;
    const speed = (this.distance - this.before) / this.interval;
    const fallen = !this.healthy();
    const reward = speed + (fallen ? 0 : healthyReward) - controlCost * squares;
    return { reward, fallen };
  }

  private healthy(): boolean {
    const limits = this.robot.healthy;
    if (limits === null) return true;
    const positions = this.data.qpos as Float64Array;
    const rest = [...positions.subarray(2), ...(this.data.qvel as Float64Array)];
    return (
      inside(positions[1], limits.height) &&
      inside(positions[2], limits.angle) &&
      rest.every((value) => Math.abs(value) < limits.state)
    );
  }
}

function inside(value: number, [low, high]: [number, number]): boolean {
  return low < value && value < high;
}

/** A number of the standard normal distribution (Box and Muller). */
function normal(): number {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}
