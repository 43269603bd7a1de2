/** A robot under way: the policy, the physics and the clock of the return, without any drawing. */

import type { Policy } from "./policy";
import { EPISODE_STEPS } from "./robots";
import type { Simulation } from "./simulation";

/** Seconds for which a fallen robot stays down before it stands up again. */
const DOWN_SECONDS = 1.2;

export interface Step {
  /** Steps since the return's clock began. */
  step: number;
  /** Return collected since then. */
  collected: number;
  /** Metres a second. */
  speed: number;
  layers: Float32Array[];
}

export class Session {
  /** Steps since the return's clock began, and the return collected in them. */
  steps = 0;
  collected = 0;
  speed = 0;
  down = 0;
  falls = 0;
  private reward = 0;
  private acted = false;
  private owed = 0;

  constructor(
    readonly simulation: Simulation,
    public policy: Policy,
    private asked: number,
    private readonly onStep: (step: Step) => void,
    private readonly onClock: () => void,
  ) {
    this.reset();
  }

  get target(): number {
    return this.asked;
  }

  /**
   * Asks for another return. The robot is in the middle of an episode, so what is still to be collected becomes
   * the share of the new return that belongs to the steps that are left.
   */
  set target(value: number) {
    this.asked = value;
    // The policy takes the last reward off when it acts.
    this.policy.returnToGo = (value * (EPISODE_STEPS - this.steps)) / EPISODE_STEPS + this.reward;
  }

  /** Stands the robot up and begins an episode. */
  reset(): void {
    this.simulation.reset();
    this.policy.begin(this.asked);
    this.down = 0;
    this.owed = 0;
    this.acted = false;
    this.speed = 0;
    this.restartClock();
  }

  /** Exchanges the policy while the robot runs; the new one begins with an empty memory. */
  change(policy: Policy): void {
    policy.rolling = this.policy.rolling;
    policy.begin(0);
    this.policy = policy;
    this.target = this.asked;
  }

  /** Moves the world by so many seconds. */
  advance(seconds: number): void {
    if (this.down > 0) {
      this.down -= seconds;
      if (this.down <= 0) this.reset();
      return;
    }
    this.owed += seconds;
    while (this.owed >= this.simulation.timestep && this.down === 0) {
      this.owed -= this.simulation.timestep;
      this.substep();
    }
  }

  private substep(): void {
    const { simulation, policy } = this;
    if (!this.acted) {
      simulation.begin(policy.act(simulation.observation(), this.reward));
      this.acted = true;
    }
    const from = simulation.distance;
    const outcome = simulation.advance();
    this.speed += 0.02 * ((simulation.distance - from) / simulation.timestep - this.speed);
    if (outcome === null) return;
    this.acted = false;
    this.reward = outcome.reward;
    this.collected += outcome.reward;
    this.steps += 1;
    this.onStep({
      step: this.steps,
      collected: this.collected,
      speed: this.speed,
      layers: policy.layers,
    });
    if (outcome.fallen) {
      this.falls += 1;
      this.down = DOWN_SECONDS;
    } else if (this.steps === EPISODE_STEPS) {
      // Gymnasium would end the episode here. The robot runs on, and is asked for the same again.
      this.restartClock();
      policy.returnToGo = this.asked;
    }
  }

  private restartClock(): void {
    if (this.steps > 0) this.onClock();
    this.steps = 0;
    this.collected = 0;
    this.reward = 0;
  }
}
