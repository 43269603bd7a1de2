/**
 * The three robots: what Gymnasium's v5 environments say of them, and the policies that move them.
 * `test/simulation.test.ts` holds these numbers against recordings of the real environments.
 */

export interface Robot {
  name: string;
  environment: string;
  /** Gymnasium's model, unchanged (MIT licence, public/robots). */
  model: string;
  /** Physics steps for each action. */
  frameSkip: number;
  /** Scatter of the start: positions are uniform, velocities uniform or, on HalfCheetah, normal. */
  resetNoise: number;
  normalVelocities: boolean;
  /** Observed velocities are clipped to this size. */
  velocityClip: number;
  /** Subtracted: this times the sum of the squared actions. */
  controlCost: number;
  healthyReward: number;
  /** The episode ends outside of these; null is a robot that cannot fall. */
  healthy: { height: [number, number]; angle: [number, number]; state: number } | null;
  /** Newtons on the torso, for a tenth of a second. */
  push: number;
  /** The policy, and the one that never saw velocities, if there is one. */
  policy: string;
  blindPolicy: string | null;
  /** What to expect of the slider, measured: docs/demo.md has the command. */
  obeys: string;
  /** Range of the slider, in units of return. */
  targets: [number, number];
}

/** Steps of an episode in Gymnasium. */
export const EPISODE_STEPS = 1000;

export const ROBOTS: Robot[] = [
  {
    name: "HalfCheetah",
    environment: "HalfCheetah-v5",
    model: "half_cheetah.xml",
    frameSkip: 5,
    resetNoise: 0.1,
    normalVelocities: true,
    velocityClip: Infinity,
    controlCost: 0.1,
    healthyReward: 0,
    healthy: null,
    push: 250,
    policy: "halfcheetah-mix",
    blindPolicy: null,
    obeys:
      "Obeys smoothly up to 5,000, and has one more gear above 9,000: its data hold nothing in between. " +
      "It speeds up at once, but brakes late or not at all, as its data never do: Reset asks from standing.",
    targets: [0, 13000],
  },
  {
    name: "Hopper",
    environment: "Hopper-v5",
    model: "hopper.xml",
    frameSkip: 4,
    resetNoise: 0.005,
    normalVelocities: false,
    velocityClip: 10,
    controlCost: 0.001,
    healthyReward: 1,
    healthy: { height: [0.7, Infinity], angle: [-0.2, 0.2], state: 100 },
    push: 60,
    policy: "hopper",
    blindPolicy: "hopper-hidden",
    obeys:
      "Two gears: its data hold one behaviour that hops to 1,300 and falls, and one that runs to 3,400.",
    targets: [300, 3500],
  },
  {
    name: "Walker2d",
    environment: "Walker2d-v5",
    model: "walker2d_v5.xml",
    frameSkip: 4,
    resetNoise: 0.005,
    normalVelocities: false,
    velocityClip: 10,
    controlCost: 0.001,
    healthyReward: 1,
    healthy: { height: [0.8, 2], angle: [-1, 1], state: Infinity },
    push: 150,
    policy: "walker2d",
    blindPolicy: null,
    obeys:
      "Two gears: its data hold one behaviour that walks to about 2,200, and one that runs to 5,900.",
    targets: [500, 6000],
  },
];

/** Every policy that the page can load. */
export const POLICIES = ROBOTS.flatMap((robot) =>
  robot.blindPolicy === null ? [robot.policy] : [robot.policy, robot.blindPolicy],
);
