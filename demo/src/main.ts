/** The page: loads, ties the controls to the session, and draws at the screen's pace. */

import type { MainModule } from "@mujoco/mujoco";
import { ReturnChart, StateMap, thousands } from "./charts";
import { loadModel, loadPhysics, loadPolicy, PageError } from "./loading";
import type { Policy } from "./policy";
import { EPISODE_STEPS, ROBOTS, type Robot } from "./robots";
import { Session } from "./session";
import { Simulation } from "./simulation";
import "./style.css";
import { View } from "./view";

const FALLEN = "It fell: the episode is over.";
const SLOW = 0.2; // of real time
const MENTION_MILLISECONDS = 5000;
const LONGEST_FRAME = 0.1; // seconds: a slower machine runs slower instead of leaping

function element(id: string): HTMLElement {
  return document.getElementById(id)!;
}

const notice = element("notice");
const slider = element("target") as HTMLInputElement;
const returnsCanvas = element("returns") as HTMLCanvasElement;
const memoryCanvas = element("memory") as HTMLCanvasElement;
let downloaded = 0;
let chosen = 0;
let mujoco: MainModule;
let view: View;
let session: Session | null = null;
let returns: ReturnChart;
let memory: StateMap;
let robot: Robot;
let paused = false;
let slow = false;
let hidden = false;
let seeing: Policy;
let blind: Policy | null = null;

/** Shows one sentence below the robot; one on what went wrong stays until a robot is loaded. */
function say(text: string, wrong = false): void {
  if (notice.classList.contains("wrong") && !wrong) return;
  notice.textContent = text;
  notice.hidden = text === "";
  notice.classList.toggle("wrong", wrong);
}

/** Shows one sentence for a while. */
function mention(text: string): void {
  say(text);
  setTimeout(() => {
    if (notice.textContent === text) say("");
  }, MENTION_MILLISECONDS);
}

function fail(error: unknown): void {
  element("loading").hidden = true;
  if (!(error instanceof PageError)) console.error(error);
  const why = error instanceof Error ? error.message : String(error);
  say(error instanceof PageError ? why : `The page has stopped: ${why} Reload it.`, true);
}

// -- loading ---------------------------------------------------------------------------------

const EXPECTED_BYTES = 4_700_000; // the physics, a model and a policy

function progressed(bytes: number): void {
  downloaded += bytes;
  (element("progress") as HTMLProgressElement).value = downloaded / EXPECTED_BYTES;
}

async function choose(next: Robot): Promise<void> {
  const choice = ++chosen;
  element("loading").hidden = false;
  element("loading-what").textContent = next.name;
  const [model, policy, other] = await Promise.all([
    loadModel(next.model, progressed),
    loadPolicy(next.policy, progressed),
    next.blindPolicy === null ? null : loadPolicy(next.blindPolicy, progressed),
  ]);
  if (choice !== chosen) return; // another robot was chosen meanwhile
  session?.simulation.delete();
  session = null;
  robot = next;
  seeing = policy;
  blind = other;
  hidden = false;
  const { n_layer, d_model } = policy.config.backbone;
  returns = new ReturnChart(returnsCanvas, EPISODE_STEPS);
  memory = new StateMap(memoryCanvas, n_layer, d_model, 500);
  const [low, high] = next.targets;
  Object.assign(slider, { min: String(low), max: String(high), step: String((high - low) / 200) });
  slider.value = String(policy.config.evaluation.target_returns[0]);
  element("asked").textContent = thousands(slider.valueAsNumber);
  element("obeys").textContent = next.obeys;
  for (const button of element("robots").children) {
    button.setAttribute("aria-checked", String(button.textContent === next.name));
  }
  const simulation = new Simulation(mujoco, next, model);
  session = new Session(
    simulation,
    policy,
    slider.valueAsNumber,
    (step) => {
      returns.add(step.collected);
      memory.add(step.layers);
    },
    () => {
      returns.end();
    },
  );
  view.show(simulation);
  notice.classList.remove("wrong");
  say("");
  element("loading").hidden = true;
  describe();
  facts();
}

function facts(): void {
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
  const weights = seeing.parameters;
  element("facts").textContent =
    `${robot.environment} as in Gymnasium, in MuJoCo ${mujoco.mj_versionString()} (WebAssembly; the scores of the ` +
    `project come from another version). minGRU, ${thousands(weights)} parameters, ` +
    `${megabytes(4 * weights)} MB; loaded so far: ${megabytes(downloaded)} MB besides the page itself.`;
}

// -- controls --------------------------------------------------------------------------------

/** Says in words what the toggles mean now. */
function describe(): void {
  const rolling = session?.policy.rolling ?? false;
  press("pause", paused, paused ? "Resume" : "Pause");
  press("slow", slow);
  press("hide", hidden);
  press("rolling", rolling, rolling ? "Rolling states" : "Carried state");
  const sight = !hidden
    ? ""
    : blind !== null
      ? "Velocities are hidden: a policy acts that was trained without them and must remember. "
      : "Velocities are hidden from a policy that never learned to do without: expect a fall. ";
  const past = rolling
    ? "Two states take turns; each is forgotten every 64 steps."
    : "One state is carried for as long as the robot runs.";
  element("mode").textContent = sight + past;
}

function press(id: string, pressed: boolean, text?: string): void {
  element(id).setAttribute("aria-pressed", String(pressed));
  if (text !== undefined) element(id).querySelector("span")!.textContent = text;
}

const ACTIONS: Record<string, (running: Session) => void> = {
  push: (running) => {
    running.simulation.push();
  },
  pause: () => {
    paused = !paused;
  },
  slow: () => {
    slow = !slow;
  },
  reset: (running) => {
    running.reset();
    returns.clear();
    memory.clear();
  },
  forget: (running) => {
    running.policy.forget();
  },
  hide: (running) => {
    hidden = !hidden;
    if (blind === null) seeing.hideVelocities = hidden;
    else running.change(hidden ? blind : seeing);
  },
  rolling: (running) => {
    running.policy.rolling = !running.policy.rolling;
    running.policy.forget();
  },
};
const KEYS: Record<string, string> = {
  p: "push",
  " ": "pause",
  s: "slow",
  r: "reset",
  f: "forget",
  h: "hide",
  c: "rolling",
};

function act(name: string): void {
  if (session === null) return;
  ACTIONS[name](session);
  describe();
}

function ask(value: number): void {
  slider.value = String(value);
  element("asked").textContent = thousands(slider.valueAsNumber);
  if (session !== null) session.target = slider.valueAsNumber;
}

function connect(): void {
  for (const name of Object.keys(ACTIONS)) {
    element(name).addEventListener("click", () => {
      act(name);
    });
  }
  slider.addEventListener("input", () => {
    ask(slider.valueAsNumber);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    const steps = { arrowleft: -10, arrowright: 10 }[key];
    if (steps !== undefined && event.target !== slider) {
      ask(slider.valueAsNumber + steps * Number(slider.step));
    } else if (key in KEYS && !(key === " " && event.target instanceof HTMLButtonElement)) {
      act(KEYS[key]);
    } else {
      return;
    }
    event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && session !== null) mention("The robot waited while this tab was in the background.");
  });
  for (const each of ROBOTS) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: each.name });
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => {
      choose(each).catch(fail);
    });
    element("robots").append(button);
  }
}

// -- drawing ---------------------------------------------------------------------------------

function frame(before: number): void {
  requestAnimationFrame((now) => {
    try {
      draw(Math.min((now - before) / 1000, LONGEST_FRAME));
    } catch (error) {
      fail(error);
      return;
    }
    frame(now);
  });
}

function draw(seconds: number): void {
  if (session === null) return;
  if (!paused) session.advance(slow ? SLOW * seconds : seconds);
  view.draw(session.simulation);
  returns.draw(slider.valueAsNumber, robot.targets[1]);
  element("speed").textContent = session.speed.toFixed(1);
  element("collected").textContent = thousands(session.collected);
  element("step").textContent = thousands(session.steps);
  element("falls").textContent = String(session.falls);
  if (session.down > 0) say(FALLEN);
  else if (notice.textContent === FALLEN) say("");
}

async function start(): Promise<void> {
  connect();
  try {
    view = new View(element("view") as HTMLCanvasElement);
  } catch {
    throw new PageError("This browser has no WebGL, which draws the robot: turn it on, or try another one.");
  }
  mujoco = await loadPhysics(progressed);
  await choose(ROBOTS[0]);
  frame(performance.now());
}

start().catch(fail);
