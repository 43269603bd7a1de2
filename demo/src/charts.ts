/** The two strips: the return collected against the return asked for, and the state of the layers. */

/** Prepares a canvas for the screen's pixels; returns its context and its size on the page. */
function prepared(canvas: HTMLCanvasElement): [CanvasRenderingContext2D, number, number] {
  const ratio = Math.min(devicePixelRatio, 2);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d")!;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return [context, width, height];
}

/** The return over the steps of an episode: now, asked for, and in the episodes before. */
export class ReturnChart {
  private now: number[] = [];
  private readonly before: number[][] = [];

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly steps: number,
  ) {}

  add(collected: number): void {
    this.now.push(collected);
  }

  /** Ends the curve, and keeps it in the background. */
  end(): void {
    if (this.now.length > 1) this.before.push(this.now);
    if (this.before.length > 4) this.before.shift();
    this.now = [];
  }

  clear(): void {
    this.now = [];
    this.before.length = 0;
  }

  draw(target: number, highest: number): void {
    const [c, width, height] = prepared(this.canvas);
    const style = getComputedStyle(this.canvas);
    const colour = (name: string) => style.getPropertyValue(name);
    const [left, bottom, top] = [48, height - 18, 8];
    const largest = Math.max(highest * 1.08, ...this.now.slice(-1), ...this.before.flatMap((curve) => curve.slice(-1)));
    const x = (step: number) => left + ((width - left - 6) * step) / this.steps;
    const y = (value: number) => bottom - ((bottom - top) * Math.max(value, 0)) / largest;
    c.clearRect(0, 0, width, height);
    c.font = "11px system-ui, sans-serif";
    c.fillStyle = colour("--ink-soft");
    c.strokeStyle = colour("--rule");
    c.lineWidth = 1;
    for (const share of [0, 0.5, 1]) {
      const value = highest * share;
      c.beginPath();
      c.moveTo(left, y(value));
      c.lineTo(width - 6, y(value));
      c.stroke();
      c.textAlign = "right";
      c.fillText(thousands(value), left - 5, y(value) + 4);
    }
    for (const step of [0, this.steps / 2, this.steps]) {
      c.textAlign = step === 0 ? "left" : step === this.steps ? "right" : "center";
      c.fillText(`${step}${step === this.steps ? " steps" : ""}`, x(step), height - 4);
    }
    this.before.forEach((curve, i) => {
      c.globalAlpha = 0.15 + 0.08 * i;
      line(c, colour("--accent"), 1.5, curve.map((value, step) => [x(step), y(value)]));
    });
    c.globalAlpha = 1;
    c.setLineDash([5, 4]);
    line(c, colour("--asked"), 2, [[x(0), y(0)], [x(this.steps), y(target)]]);
    c.setLineDash([]);
    line(c, colour("--accent"), 2.5, this.now.map((value, step) => [x(step), y(value)]));
  }
}

/** The state of each layer, a channel a row and a step a column; the newest on the right. */
export class StateMap {
  private readonly column: ImageData;
  private readonly largest: Float32Array[] = [];

  constructor(
    private readonly canvas: HTMLCanvasElement,
    layers: number,
    private readonly channels: number,
    columns: number,
  ) {
    canvas.width = columns;
    canvas.height = layers * channels + (layers - 1) * GAP;
    this.column = new ImageData(1, channels);
    this.clear(layers);
  }

  clear(layers = this.largest.length): void {
    this.largest.length = 0;
    for (let i = 0; i < layers; i++) this.largest.push(new Float32Array(this.channels).fill(1e-3));
    this.canvas.getContext("2d")!.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  add(layers: Float32Array[]): void {
    const c = this.canvas.getContext("2d")!;
    const { width, height } = this.canvas;
    c.globalCompositeOperation = "copy";
    c.drawImage(this.canvas, -1, 0);
    c.globalCompositeOperation = "source-over";
    c.clearRect(width - 1, 0, 1, height);
    layers.forEach((layer, index) => {
      const largest = this.largest[index];
      layer.forEach((value, channel) => {
        // Of each channel's largest size so far, which fades, so that the map stays readable.
        largest[channel] = Math.max(largest[channel] * 0.9995, Math.abs(value));
        this.column.data.set(heat(Math.abs(value) / largest[channel]), 4 * channel);
      });
      c.putImageData(this.column, width - 1, index * (this.channels + GAP));
    });
  }
}

const GAP = 6;

/** Dark blue through magenta and orange to pale yellow, for 0 to 1. */
function heat(value: number): [number, number, number, number] {
  const at = Math.min(Math.max(value, 0), 1) * (HEAT.length - 1);
  const [low, share] = [Math.min(Math.floor(at), HEAT.length - 2), at % 1];
  const mixed = HEAT[low].map((part, i) => part + (at === HEAT.length - 1 ? 1 : share) * (HEAT[low + 1][i] - part));
  return [mixed[0], mixed[1], mixed[2], 255];
}

const HEAT = [
  [13, 10, 44],
  [84, 18, 110],
  [187, 55, 84],
  [249, 142, 9],
  [252, 245, 170],
];

function line(c: CanvasRenderingContext2D, colour: string, width: number, points: number[][]): void {
  c.strokeStyle = colour;
  c.lineWidth = width;
  c.beginPath();
  for (const [x, y] of points) c.lineTo(x, y);
  c.stroke();
}

export function thousands(value: number): string {
  return Math.round(value).toLocaleString("en");
}
