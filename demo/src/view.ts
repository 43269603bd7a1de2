/** Draws the robot: MuJoCo's capsules on an endless track, with z upwards. */

import * as THREE from "three";
import type { Simulation } from "./simulation";

const CAPSULE = 3; // mjGEOM_CAPSULE
const TILE = 1; // metres
const SIGN_EVERY = 10; // metres

export class View {
  private readonly renderer: THREE.WebGLRenderer;
  private readonly scene = new THREE.Scene();
  private readonly camera = new THREE.PerspectiveCamera(34, 1, 0.1, 120);
  private readonly sun = new THREE.DirectionalLight(0xffffff, 2.4);
  private readonly ground: THREE.Mesh<THREE.PlaneGeometry, THREE.MeshStandardMaterial>;
  private readonly signs: { sprite: THREE.Sprite; metres: number }[] = [];
  private robot = new THREE.Group();
  private parts: { geom: number; mesh: THREE.Mesh }[] = [];
  private readonly focus = new THREE.Vector3();
  private azimuth = 0.28;
  private elevation = 0.14;

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true });
    this.renderer.shadowMap.enabled = true;
    this.renderer.toneMapping = THREE.ACESFilmicToneMapping;
    this.camera.up.set(0, 0, 1);
    this.sun.castShadow = true;
    this.sun.shadow.mapSize.set(1024, 1024);
    Object.assign(this.sun.shadow.camera, { left: -3, right: 3, top: 3, bottom: -3, far: 20 });
    this.scene.add(this.sun, this.sun.target, new THREE.HemisphereLight(0xdfe9ff, 0x8a7f78, 1.5));
    this.ground = new THREE.Mesh(
      new THREE.PlaneGeometry(160, 160),
      new THREE.MeshStandardMaterial({ roughness: 0.95 }),
    );
    this.ground.receiveShadow = true;
    this.scene.add(this.ground, this.robot);
    for (let i = 0; i < 6; i++) {
      const sprite = new THREE.Sprite(new THREE.SpriteMaterial({ transparent: true }));
      sprite.scale.set(1.2, 0.6, 1);
      this.signs.push({ sprite, metres: NaN });
      this.scene.add(sprite);
    }
    this.paint();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.paint();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons !== 1) return;
      this.azimuth -= event.movementX * 0.006;
      this.elevation = Math.min(1.3, Math.max(0.02, this.elevation + event.movementY * 0.006));
    });
  }

  /** Takes the colours of the page, which are those of the visitor's system. */
  private paint(): void {
    const style = getComputedStyle(document.documentElement);
    const [sky, tile, line] = ["--sky", "--tile", "--line"].map((name) => style.getPropertyValue(name).trim());
    this.scene.fog = new THREE.Fog(sky, 9, 34);
    this.ground.material.map?.dispose();
    this.ground.material.map = tiles(tile, line);
    this.ground.material.needsUpdate = true;
    for (const sign of this.signs) sign.metres = NaN;
  }

  /** Shows another robot. */
  show(simulation: Simulation): void {
    this.scene.remove(this.robot);
    for (const { mesh } of this.parts) mesh.geometry.dispose();
    this.robot = new THREE.Group();
    this.parts = [];
    const { model } = simulation;
    const [types, sizes, bodies] = [
      model.geom_type as Int32Array,
      model.geom_size as Float64Array,
      model.geom_bodyid as Int32Array,
    ];
    for (let geom = 0; geom < model.ngeom; geom++) {
      if (types[geom] !== CAPSULE) continue;
      const [radius, half] = [sizes[3 * geom], sizes[3 * geom + 1]];
      const shape = new THREE.CapsuleGeometry(radius, 2 * half, 12, 28).rotateX(Math.PI / 2);
      const mesh = new THREE.Mesh(
        shape,
        new THREE.MeshPhysicalMaterial({ color: colour(bodies[geom], model.nbody), roughness: 0.42, clearcoat: 0.5 }),
      );
      mesh.castShadow = true;
      mesh.matrixAutoUpdate = false;
      this.robot.add(mesh);
      this.parts.push({ geom, mesh });
    }
    this.scene.add(this.robot);
    this.focus.set(simulation.distance, 0, 0.75);
  }

  /** Draws the robot where it is. */
  draw(simulation: Simulation): void {
    const positions = simulation.data.geom_xpos as Float64Array;
    const rotations = simulation.data.geom_xmat as Float64Array;
    for (const { geom, mesh } of this.parts) {
      const r = rotations.subarray(9 * geom, 9 * geom + 9);
      const [x, y, z] = positions.subarray(3 * geom, 3 * geom + 3);
      mesh.matrix.set(r[0], r[1], r[2], x, r[3], r[4], r[5], y, r[6], r[7], r[8], z, 0, 0, 0, 1);
    }
    this.follow(simulation.distance);
    this.renderer.render(this.scene, this.camera);
  }

  private follow(x: number): void {
    const { canvas, focus, camera } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const ratio = Math.min(devicePixelRatio, 2);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      this.renderer.setPixelRatio(ratio);
      this.renderer.setSize(width, height, false);
      camera.aspect = width / height;
      camera.updateProjectionMatrix();
    }
    focus.x = x;
    const away = camera.aspect > 1.2 ? 5.2 : 6.4;
    const flat = away * Math.cos(this.elevation);
    camera.position.set(
      x - flat * Math.sin(this.azimuth),
      -flat * Math.cos(this.azimuth),
      focus.z + away * Math.sin(this.elevation),
    );
    camera.lookAt(focus);
    this.sun.position.set(x - 1.5, -2.5, 6);
    this.sun.target.position.set(x, 0, 0);
    this.ground.position.x = TILE * 2 * Math.round(x / (TILE * 2));
    const nearest = Math.round(x / SIGN_EVERY) - 2;
    this.signs.forEach((sign, i) => {
      const metres = SIGN_EVERY * (nearest + i);
      if (sign.metres === metres) return;
      sign.metres = metres;
      sign.sprite.position.set(metres, 2.2, 0.45);
      sign.sprite.material.map?.dispose();
      sign.sprite.material.map = label(`${metres} m`);
    });
  }
}

/** A warm torso, and limbs that go from one hue to another. */
function colour(body: number, bodies: number): THREE.Color {
  return new THREE.Color().setHSL(0.62 - (0.56 * (body - 1)) / Math.max(1, bodies - 2), 0.72, 0.56);
}

function drawn(width: number, height: number, paint: (c: CanvasRenderingContext2D) => void): THREE.CanvasTexture {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  paint(canvas.getContext("2d")!);
  const texture = new THREE.CanvasTexture(canvas);
  texture.colorSpace = THREE.SRGBColorSpace;
  return texture;
}

function tiles(tile: string, line: string): THREE.CanvasTexture {
  const texture = drawn(256, 256, (c) => {
    c.fillStyle = tile;
    c.fillRect(0, 0, 256, 256);
    c.fillStyle = line;
    c.fillRect(0, 0, 128, 128);
    c.fillRect(128, 128, 128, 128);
  });
  texture.wrapS = texture.wrapT = THREE.RepeatWrapping;
  texture.repeat.set(80, 80);
  texture.anisotropy = 8;
  return texture;
}

function label(text: string): THREE.CanvasTexture {
  return drawn(256, 128, (c) => {
    c.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink-soft");
    c.font = "600 64px system-ui, sans-serif";
    c.textAlign = "center";
    c.fillText(text, 128, 88);
  });
}
