/** The built page in a headless Chromium; skipped where there is none. `CHROMIUM` names another one. */

import { existsSync, mkdirSync } from "node:fs";
import { resolve } from "node:path";
import { chromium, type Browser, type BrowserContextOptions, type Page } from "playwright-core";
import { preview, type PreviewServer } from "vite";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

const demo = resolve(import.meta.dirname, "..");
const browsers = [process.env["CHROMIUM"], "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const executablePath = browsers.find((path) => path !== undefined && existsSync(path));
const SCREENSHOTS = resolve(demo, "screenshots");

describe.skipIf(executablePath === undefined)("the page", { timeout: 90_000 }, () => {
  let server: PreviewServer;
  let browser: Browser;
  let address: string;

  beforeAll(async () => {
    mkdirSync(SCREENSHOTS, { recursive: true });
    server = await preview({ root: demo, logLevel: "error", preview: { port: 0, host: "127.0.0.1" } });
    address = server.resolvedUrls!.local[0];
    browser = await chromium.launch({
      executablePath: executablePath!,
      args: [
        ..."--no-sandbox --disable-quic --no-first-run --disable-background-networking".split(" "),
        ..."--disable-component-update --disable-sync --use-angle=swiftshader".split(" "),
        ..."--enable-unsafe-swiftshader --ignore-gpu-blocklist".split(" "),
      ],
    });
  }, 60_000);

  afterAll(async () => {
    await browser.close();
    await server.close();
  });

  /** Opens the page; returns it, and the list that every error goes to. */
  async function open(options: BrowserContextOptions = {}): Promise<[Page, string[]]> {
    // Small: a processor draws it, and the robot should come near real time.
    const page = await browser.newPage({ viewport: { width: 640, height: 600 }, ...options });
    const errors: string[] = [];
    page.on("pageerror", (error) => errors.push(error.message));
    page.on("console", (message) => {
      if (message.type() === "error") errors.push(message.text());
    });
    return [page, errors];
  }

  async function loaded(page: Page): Promise<void> {
    await page.goto(address);
    await page.waitForSelector("#loading", { state: "hidden", timeout: 60_000 });
  }

  async function number(page: Page, id: string): Promise<number> {
    return Number((await page.textContent(`#${id}`))!.replace(/,/g, ""));
  }

  async function reach(page: Page, step: number): Promise<void> {
    await page.waitForFunction(
      (least) => Number(document.getElementById("step")!.textContent.replace(/,/g, "")) >= least,
      step,
      { timeout: 80_000 },
    );
  }

  /** Returns the mean speed, in returns a step, from now to a step of the same episode. */
  async function speed(page: Page, step: number): Promise<number> {
    const [before, collected] = [await number(page, "step"), await number(page, "collected")];
    await reach(page, step);
    return ((await number(page, "collected")) - collected) / ((await number(page, "step")) - before);
  }

  test("each robot is loaded, and the Hopper runs 500 steps without a fall", async () => {
    const [page, errors] = await open();
    await loaded(page);
    for (const robot of ["Walker2d", "HalfCheetah", "Hopper"]) {
      await page.click(`text=${robot}`);
      await page.waitForSelector(`#robots [aria-checked=true] >> text=${robot}`, { timeout: 30_000 });
    }
    await reach(page, 500);
    expect(await number(page, "falls")).toBe(0);
    expect(await number(page, "collected")).toBeGreaterThan(1000);
    expect(errors).toEqual([]);
    await page.close();
  });

  test("asked for more, the HalfCheetah runs faster; a push and the other buttons raise no error", async () => {
    const [page, errors] = await open();
    await loaded(page);
    await page.fill("#target", "2600");
    await page.click("#reset");
    await reach(page, 60);
    const slow = await speed(page, 100);
    await page.fill("#target", "12740");
    await page.click("#push");
    await reach(page, 220);
    const fast = await speed(page, 260);
    expect(slow).toBeGreaterThan(0.3);
    expect(fast).toBeGreaterThan(1.5 * slow);
    for (const key of ["s", "s", "h", "h", "c", "c", "f", "ArrowLeft", "p", "r"]) await page.keyboard.press(key);
    await page.click("#pause");
    await page.waitForTimeout(300);
    const paused = await number(page, "step");
    await page.waitForTimeout(500);
    expect(await number(page, "step")).toBe(paused);
    await page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
    expect(await page.textContent("#notice")).toMatch(/waited while this tab was in the background/);
    await page.click("#pause");
    await reach(page, paused + 5);
    expect(errors).toEqual([]);
    await page.close();
  });

  test.each([
    ["wide", { viewport: { width: 1320, height: 860 }, colorScheme: "light" }],
    ["narrow", { viewport: { width: 390, height: 844 }, colorScheme: "dark" }],
  ] as const)("the %s page fits its screen", async (name, options) => {
    const [page, errors] = await open(options);
    await loaded(page);
    await reach(page, 30);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    expect(overflow).toBeLessThanOrEqual(0);
    await page.screenshot({ path: resolve(SCREENSHOTS, `${name}.png`), fullPage: name === "narrow" });
    expect(errors).toEqual([]);
    await page.close();
  });

  test("what is missing is said in one sentence", async () => {
    const [page] = await open();
    await page.route("**/model.safetensors", (route) => route.fulfill({ status: 404, body: "" }));
    await page.goto(address);
    await page.waitForSelector("#notice.wrong");
    expect(await page.textContent("#notice")).toMatch(/model.safetensors is missing .*npm run build/);
    // The robot that is there runs on, and the sentence on the other stays until one is loaded.
    const [lacking] = await open();
    await lacking.route("**/walker2d/model.safetensors", (route) => route.fulfill({ status: 404, body: "" }));
    await loaded(lacking);
    await lacking.click("text=Walker2d");
    await lacking.waitForSelector("#notice.wrong");
    await reach(lacking, (await number(lacking, "step")) + 10);
    expect(await lacking.textContent("#notice")).toMatch(/walker2d\/model.safetensors is missing/);
    await lacking.click("text=Hopper");
    await lacking.waitForSelector("#notice", { state: "hidden" });
    const [other] = await open();
    await other.addInitScript("delete globalThis.WebAssembly");
    await other.goto(address);
    await other.waitForSelector("#notice.wrong");
    expect(await other.textContent("#notice")).toMatch(/no WebAssembly/);
    const [blind] = await open();
    await blind.addInitScript("HTMLCanvasElement.prototype.getContext = () => null");
    await blind.goto(address);
    await blind.waitForSelector("#notice.wrong");
    expect(await blind.textContent("#notice")).toMatch(/no WebGL/);
    await Promise.all([page, lacking, other, blind].map((each) => each.close()));
  });
});
