/** Draws the workbench: atoms, bonds, cell, force arrows, measures. Knows nothing of pointers. */

import {
  BufferAttribute,
  BufferGeometry,
  Color,
  CustomBlending,
  GLSL3,
  LineBasicMaterial,
  LineDashedMaterial,
  LineSegments,
  OneFactor,
  PerspectiveCamera,
  Quaternion,
  RawShaderMaterial,
  Scene as ThreeScene,
  Vector3,
  WebGLRenderer,
  DoubleSide,
  Euler,
  Matrix4,
  ZeroFactor,
} from 'three'
import { element } from '../chem/elements'
import { principalAxes, type Vec } from '../chem/geometry'
import { completed, inverse3, times3 } from '../chem/structure'
import { findBonds, NO_BONDS, type Bonds } from '../chem/bonds'
import { settings } from '../settings'
import type { Workbench } from '../workbench'
import { arrow, Instances, QUAD, tube } from './instances'
import { ARROW_VERTEX, MESH_FRAGMENT, SPHERE_FRAGMENT, SPHERE_VERTEX, STICK_VERTEX } from './shaders'

const FIELD_OF_VIEW = 28
/** Length of an arrow, Angstrom per (eV/Angstrom). */
const ARROW_LENGTH = 0.45
const LONGEST_ARROW = 4

export interface Hit {
  atom?: number
  bond?: readonly [number, number]
}

/** A word at a place of the picture, in CSS pixels. */
export interface Label {
  key: string
  x: number
  y: number
  text: string
  kind: 'atom' | 'measure' | 'pending' | 'axis'
}

export class Scene {
  readonly camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.1, 1000)
  /** What the camera looks at and turns around. */
  readonly target = new Vector3()
  distance = 20
  readonly turn = new Quaternion()
  /** Software rendering: draw less. */
  readonly software: boolean
  readonly rendererName: string

  /** Atoms chosen so far by the measuring tool. */
  pending: readonly number[] = []
  hover: Hit = {}
  onLabels: (labels: readonly Label[]) => void = () => {}

  private readonly renderer: WebGLRenderer
  private readonly scene = new ThreeScene()
  private readonly uniforms = {
    background: { value: new Color() },
    accent: { value: new Color() },
    fog: { value: { x: 0, y: 0 } },
    gloss: { value: 0.22 },
  }
  private readonly atoms: Instances
  private readonly sticks: Instances
  private readonly arrows: Instances
  private readonly cellLines: LineSegments
  private readonly measureLines: LineSegments
  private width = 1
  private height = 1
  private stale = true
  /** Whether everything is looked at, until the user zooms or shifts. */
  framed = false
  private drawnRevision = -1
  private drawnBonds: Bonds = NO_BONDS
  /** Positions as drawn: wrapped into the cell if asked for. */
  private places: Float64Array = new Float64Array(0)
  private radii: Float32Array = new Float32Array(0)
  private bonds: Bonds = NO_BONDS
  private readonly scratch = new Vector3()
  /** Milliseconds that the last pictures took, for a measurement. */
  readonly drawTimes: number[] = []
  draws = 0

  constructor(
    readonly canvas: HTMLCanvasElement,
    private readonly bench: Workbench,
  ) {
    const probe = document.createElement('canvas').getContext('webgl2')
    if (!probe) throw new Error('This browser offers no WebGL 2, which drawing atoms needs.')
    const info = probe.getExtension('WEBGL_debug_renderer_info')
    this.rendererName = String(info ? probe.getParameter(info.UNMASKED_RENDERER_WEBGL) : probe.getParameter(probe.RENDERER))
    this.software = /swiftshader|llvmpipe|software|softpipe/i.test(this.rendererName)
    probe.getExtension('WEBGL_lose_context')?.loseContext()
    this.renderer = new WebGLRenderer({
      canvas,
      antialias: !this.software,
      powerPreference: 'high-performance',
      preserveDrawingBuffer: false,
    })
    this.renderer.setPixelRatio(this.software ? 1 : Math.min(devicePixelRatio, 2))

    const material = (vertexShader: string, fragmentShader: string, smooth: boolean): RawShaderMaterial =>
      new RawShaderMaterial({
        glslVersion: GLSL3,
        vertexShader,
        fragmentShader,
        uniforms: this.uniforms,
        // The alpha that becomes coverage must not stay in the picture: the page would shine through.
        ...(smooth && !this.software
          ? {
              alphaToCoverage: true,
              transparent: false,
              blending: CustomBlending,
              blendSrc: OneFactor,
              blendDst: ZeroFactor,
              blendSrcAlpha: ZeroFactor,
              blendDstAlpha: OneFactor,
            }
          : {}),
        defines: smooth && !this.software ? { SMOOTH_EDGES: '' } : {},
        side: DoubleSide,
      })
    this.atoms = new Instances(QUAD, { ball: 4, paint: 4 }, material(SPHERE_VERTEX, SPHERE_FRAGMENT, true))
    this.sticks = new Instances(
      tube(this.software ? 8 : 14),
      { foot: 4, tip: 3, paint: 4 },
      material(STICK_VERTEX, MESH_FRAGMENT, false),
    )
    this.arrows = new Instances(
      arrow(this.software ? 6 : 12),
      { foot: 4, tip: 3, paint: 4 },
      material(ARROW_VERTEX, MESH_FRAGMENT, false),
    )
    this.cellLines = new LineSegments(new BufferGeometry(), new LineBasicMaterial({ vertexColors: true }))
    this.measureLines = new LineSegments(
      new BufferGeometry(),
      new LineDashedMaterial({ dashSize: 0.14, gapSize: 0.1, depthTest: false, transparent: true }),
    )
    this.cellLines.frustumCulled = false
    this.measureLines.frustumCulled = false
    this.measureLines.renderOrder = 2
    this.scene.add(this.sticks.mesh, this.atoms.mesh, this.arrows.mesh, this.cellLines, this.measureLines)
  }

  /** Something other than the positions has changed. */
  invalidate(): void {
    this.stale = true
  }

  resize(width: number, height: number): void {
    if (width === this.width && height === this.height) return
    const narrow = Math.min(1, this.width / this.height)
    this.width = Math.max(1, width)
    this.height = Math.max(1, height)
    this.renderer.setSize(this.width, this.height, false)
    this.stale = true
    // What was seen as a whole stays so; what the user has chosen keeps its extent.
    if (this.framed) this.frame()
    else this.distance *= narrow / Math.min(1, this.width / this.height)
  }

  setTheme(background: string, accent: string, line: string): void {
    // Shaders write screen colours; three.js must not convert them.
    this.uniforms.background.value.setStyle(background, '')
    this.uniforms.accent.value.setStyle(accent, '')
    this.renderer.setClearColor(new Color().setStyle(background), 1)
    ;(this.measureLines.material as LineDashedMaterial).color.setStyle(line)
    this.lineColour.setStyle(line)
    this.stale = true
  }
  private readonly lineColour = new Color()

  /** Turns so that the longest extent lies across the picture and the shortest points at the eye;
   *  crystals are seen a little from the side. */
  orient(): void {
    const p = this.bench.shownPositions()
    const n = p.length / 3
    this.turn.identity()
    this.stale = true
    if (this.bench.shownCell() || n < 3) {
      if (this.bench.shownCell()) this.turn.setFromEuler(new Euler(-0.35, 0.45, 0, 'YXZ'))
      return
    }
    const mean = [0, 0, 0]
    for (let i = 0; i < 3 * n; i++) mean[i % 3]! += p[i]! / n
    const spread = [0, 0, 0, 0, 0, 0, 0, 0, 0]
    for (let i = 0; i < n; i++)
      for (let a = 0; a < 3; a++)
        for (let b = 0; b < 3; b++) spread[3 * a + b]! += (p[3 * i + a]! - mean[a]!) * (p[3 * i + b]! - mean[b]!)
    const [x, y] = principalAxes(spread)
    const right = new Vector3(...x)
    const up = new Vector3(...y)
    const axes = new Matrix4().makeBasis(right, up, new Vector3().crossVectors(right, up))
    this.turn.setFromRotationMatrix(axes)
    // A flat molecule looks better a little tilted.
    this.turn.multiply(new Quaternion().setFromEuler(new Euler(-0.3, 0.25, 0)))
  }

  /** Looks at everything, from where the eye is turned to. */
  frame(): void {
    this.stale = true
    this.framed = true
    const p = this.bench.shownPositions()
    const points: Vector3[] = []
    for (let i = 0; i < p.length; i += 3) points.push(new Vector3(p[i]!, p[i + 1]!, p[i + 2]!))
    const cell = settings.cell.value ? this.bench.shownCell() : null
    if (cell)
      for (let c = 0; c < 8; c++) {
        const corner = times3([c & 1, (c >> 1) & 1, (c >> 2) & 1], cell)
        points.push(new Vector3(corner[0]!, corner[1]!, corner[2]!))
      }
    if (points.length === 0) {
      this.target.set(0, 0, 0)
      this.distance = 20
      return
    }
    // In the axes of the picture: x to the right, y up, z towards the eye.
    const unturn = this.turn.clone().invert()
    const low = new Vector3(Infinity, Infinity, Infinity)
    const high = new Vector3(-Infinity, -Infinity, -Infinity)
    for (const point of points) {
      point.applyQuaternion(unturn)
      low.min(point)
      high.max(point)
    }
    const centre = low.add(high).multiplyScalar(0.5)
    const tan = Math.tan((FIELD_OF_VIEW * Math.PI) / 360)
    const aspect = this.width / this.height
    // Room for the balls and their arrows.
    const room = 1.3
    let distance = 7
    let radius = 0
    for (const point of points) {
      const { x, y, z } = point.sub(centre)
      radius = Math.max(radius, Math.hypot(x, y, z))
      distance = Math.max(distance, z + (Math.abs(y) + room) / tan, z + (Math.abs(x) + room) / (tan * aspect))
    }
    // What is long is not cut off much when it is turned.
    const turned = (radius + room) / Math.sin(Math.atan(tan * Math.min(1, aspect)))
    this.distance = Math.max(1.06 * distance, turned / 1.5)
    this.target.copy(centre).applyQuaternion(this.turn)
  }

  /** Draws if anything has changed. */
  draw(): void {
    if (!this.stale && this.drawnRevision === this.bench.revision && this.drawnBonds === this.bench.bonds) return
    const begun = performance.now()
    this.drawnRevision = this.bench.revision
    this.drawnBonds = this.bench.bonds
    this.stale = false
    this.placeCamera()
    this.build()
    this.renderer.render(this.scene, this.camera)
    this.writeLabels()
    this.draws++
    this.drawTimes.push(performance.now() - begun)
    if (this.drawTimes.length > 300) this.drawTimes.shift()
  }

  private placeCamera(): void {
    const camera = this.camera
    camera.aspect = this.width / this.height
    camera.near = Math.max(0.05, this.distance / 50)
    camera.far = this.distance * 12 + 200
    camera.quaternion.copy(this.turn)
    camera.position.copy(this.scratch.set(0, 0, this.distance).applyQuaternion(this.turn)).add(this.target)
    camera.updateProjectionMatrix()
    camera.updateMatrixWorld()
  }

  /** Radius of an atom as drawn, Angstrom. */
  private radius(z: number): number {
    const e = element(z)
    switch (settings.style.value) {
      case 'space-filling':
        return e.vdw || 1.7
      case 'sticks':
        return 0.16
      default:
        return 0.18 + 0.3 * Math.min(e.covalent, 1.7) ** 0.8
    }
  }

  private build(): void {
    const bench = this.bench
    const { numbers } = bench.structure
    const n = numbers.length
    const positions = bench.shownPositions()
    if (positions.length !== 3 * n) return
    const cell = bench.shownCell()
    this.places = this.displayed(positions, n, cell)
    if (this.radii.length !== n) this.radii = new Float32Array(n)
    const marks = new Uint8Array(n)
    for (const atom of bench.selection.value) marks[atom] = 2
    for (const atom of this.pending) marks[atom] = 2
    const bond = bench.selectedBond.value
    if (this.hover.atom !== undefined && marks[this.hover.atom] === 0) marks[this.hover.atom] = 1

    this.atoms.reserve(n)
    const ball = this.atoms.array('ball')
    const paint = this.atoms.array('paint')
    let extent = 0
    for (let i = 0; i < n; i++) {
      const z = numbers[i]!
      const colour = element(z).colour
      const radius = this.radius(z)
      this.radii[i] = radius
      ball[4 * i] = this.places[3 * i]!
      ball[4 * i + 1] = this.places[3 * i + 1]!
      ball[4 * i + 2] = this.places[3 * i + 2]!
      ball[4 * i + 3] = radius
      paint[4 * i] = ((colour >> 16) & 255) / 255
      paint[4 * i + 1] = ((colour >> 8) & 255) / 255
      paint[4 * i + 2] = (colour & 255) / 255
      paint[4 * i + 3] = marks[i]!
      const dx = this.places[3 * i]! - this.target.x
      const dy = this.places[3 * i + 1]! - this.target.y
      const dz = this.places[3 * i + 2]! - this.target.z
      extent = Math.max(extent, dx * dx + dy * dy + dz * dz)
    }
    this.atoms.count = n
    const reach = Math.sqrt(extent) + 1
    // Haze only over systems with depth.
    const fog = this.uniforms.fog.value
    fog.x = this.distance - 0.15 * reach
    fog.y = settings.depth.value && reach > 5 ? 0.42 / reach : 0

    this.buildBonds(n, bond)
    this.buildArrows(n)
    this.buildCell(settings.cell.value ? cell : null)
    this.buildMeasures()
  }

  private displayed(positions: ArrayLike<number>, n: number, cell: Float64Array | null): Float64Array {
    const places = this.places.length === 3 * n ? this.places : new Float64Array(3 * n)
    for (let i = 0; i < 3 * n; i++) places[i] = positions[i]!
    if (!settings.wrap.value || !cell) return places
    const whole = completed(cell)
    const inverse = inverse3(whole)
    if (!inverse) return places
    const { periodic } = this.bench.structure
    const f = [0, 0, 0]
    const v = [0, 0, 0]
    for (let i = 0; i < n; i++) {
      for (let k = 0; k < 3; k++) v[k] = places[3 * i + k]!
      times3(v, inverse, f)
      for (let k = 0; k < 3; k++) if (periodic[k]) f[k] = f[k]! - Math.floor(f[k]! + 1e-9)
      times3(f, whole, v)
      for (let k = 0; k < 3; k++) places[3 * i + k] = v[k]!
    }
    return places
  }

  private buildBonds(n: number, selected: readonly [number, number] | null): void {
    const style = settings.style.value
    if (!settings.bonds.value || style === 'space-filling') {
      this.bonds = NO_BONDS
      this.sticks.count = 0
      return
    }
    const bench = this.bench
    this.bonds =
      settings.wrap.value && bench.shownCell()
        ? findBonds({ numbers: bench.structure.numbers, cell: bench.shownCell(), periodic: bench.structure.periodic }, this.places, bench.bonds)
        : bench.bonds
    const { count, first, second, shift } = this.bonds
    this.sticks.reserve(2 * count)
    const foot = this.sticks.array('foot')
    const tip = this.sticks.array('tip')
    const paint = this.sticks.array('paint')
    const p = this.places
    const radius = style === 'sticks' ? 0.16 : 0.105
    const { numbers } = bench.structure
    let k = 0
    const half = (atom: number, dx: number, dy: number, dz: number, mark: number): void => {
      const colour = element(numbers[atom]!).colour
      foot[4 * k] = p[3 * atom]!
      foot[4 * k + 1] = p[3 * atom + 1]!
      foot[4 * k + 2] = p[3 * atom + 2]!
      foot[4 * k + 3] = radius
      tip[3 * k] = p[3 * atom]! + dx / 2
      tip[3 * k + 1] = p[3 * atom + 1]! + dy / 2
      tip[3 * k + 2] = p[3 * atom + 2]! + dz / 2
      paint[4 * k] = ((colour >> 16) & 255) / 255
      paint[4 * k + 1] = ((colour >> 8) & 255) / 255
      paint[4 * k + 2] = (colour & 255) / 255
      paint[4 * k + 3] = mark
      k++
    }
    for (let b = 0; b < count; b++) {
      const i = first[b]!
      const j = second[b]!
      if (i >= n || j >= n) continue
      const dx = p[3 * j]! + shift[3 * b]! - p[3 * i]!
      const dy = p[3 * j + 1]! + shift[3 * b + 1]! - p[3 * i + 1]!
      const dz = p[3 * j + 2]! + shift[3 * b + 2]! - p[3 * i + 2]!
      const is = (pair: readonly [number, number] | null | undefined): boolean =>
        !!pair && ((pair[0] === i && pair[1] === j) || (pair[0] === j && pair[1] === i))
      const mark = is(selected) || is(this.hover.bond) ? 1 : 0
      half(i, dx, dy, dz, mark)
      half(j, -dx, -dy, -dz, mark)
    }
    this.sticks.count = k
  }

  private buildArrows(n: number): void {
    const forces = this.bench.shownForces()
    if (!settings.forces.value || forces.length !== 3 * n) {
      this.arrows.count = 0
      return
    }
    this.arrows.reserve(n)
    const foot = this.arrows.array('foot')
    const tip = this.arrows.array('tip')
    const paint = this.arrows.array('paint')
    const factor = ARROW_LENGTH * settings.forceScale.value
    let k = 0
    for (let i = 0; i < n; i++) {
      const size = Math.hypot(forces[3 * i]!, forces[3 * i + 1]!, forces[3 * i + 2]!)
      let length = size * factor
      if (!(length > 0.06)) continue
      length = Math.min(length, LONGEST_ARROW)
      for (let c = 0; c < 3; c++) {
        const direction = forces[3 * i + c]! / size
        // From the surface of the ball.
        foot[4 * k + c] = this.places[3 * i + c]! + direction * this.radii[i]! * 0.9
        tip[3 * k + c] = foot[4 * k + c]! + direction * length
      }
      foot[4 * k + 3] = Math.min(0.05, 0.3 * length)
      paint[4 * k] = 0.93
      paint[4 * k + 1] = 0.52
      paint[4 * k + 2] = 0.13
      paint[4 * k + 3] = 0
      k++
    }
    this.arrows.count = k
  }

  private buildCell(cell: Float64Array | null): void {
    this.cellLines.visible = cell !== null
    if (!cell) return
    const positions: number[] = []
    const colours: number[] = []
    const line = this.lineColour
    const axes = [new Color(0xd9534f), new Color(0x4caf50), new Color(0x4a7fe0)]
    const corner = (c: number): number[] => times3([c & 1, (c >> 1) & 1, (c >> 2) & 1], cell) as number[]
    for (let c = 0; c < 8; c++)
      for (let k = 0; k < 3; k++) {
        if (c & (1 << k)) continue
        positions.push(...corner(c), ...corner(c | (1 << k)))
        const colour = c === 0 ? axes[k]! : line
        colours.push(colour.r, colour.g, colour.b, colour.r, colour.g, colour.b)
      }
    setLines(this.cellLines, positions, colours)
  }

  private buildMeasures(): void {
    const positions: number[] = []
    const add = (points: readonly Vec[]): void => {
      for (let i = 0; i + 1 < points.length; i++) positions.push(...points[i]!, ...points[i + 1]!)
    }
    for (const atoms of this.bench.measures.value) {
      const m = this.bench.measured(atoms)
      if (m) add(m.points)
    }
    if (this.pending.length > 1) {
      const m = this.bench.measured(this.pending)
      if (m) add(m.points)
    }
    this.measureLines.visible = positions.length > 0
    if (positions.length === 0) return
    setLines(this.measureLines, positions)
    this.measureLines.computeLineDistances()
  }

  private writeLabels(): void {
    const labels: Label[] = []
    const put = (key: string, x: number, y: number, z: number, text: string, kind: Label['kind']): void => {
      const at = this.project(x, y, z)
      if (at && at[0] > -50 && at[0] < this.width + 50 && at[1] > -50 && at[1] < this.height + 50)
        labels.push({ key, x: at[0], y: at[1], text, kind })
    }
    const { numbers } = this.bench.structure
    const p = this.places
    if (settings.labels.value !== 'none' && numbers.length <= 400)
      for (let i = 0; i < numbers.length; i++) {
        const symbol = element(numbers[i]!).symbol
        const text = settings.labels.value === 'index' ? `${symbol}${i + 1}` : symbol
        put(`a${i}`, p[3 * i]!, p[3 * i + 1]!, p[3 * i + 2]!, text, 'atom')
      }
    const sign = (key: string, atoms: readonly number[], kind: Label['kind']): void => {
      const m = this.bench.measured(atoms)
      if (!m) return
      // A distance and a torsion at the middle of the (second) pair, an angle at its vertex.
      const [q, r] = m.kind === 'torsion' ? [m.points[1]!, m.points[2]!] : m.kind === 'angle' ? [m.points[1]!, m.points[1]!] : [m.points[0]!, m.points[1]!]
      put(key, (q[0] + r[0]) / 2, (q[1] + r[1]) / 2, (q[2] + r[2]) / 2, m.text, kind)
    }
    this.bench.measures.value.forEach((atoms, i) => sign(`m${i}`, atoms, 'measure'))
    if (this.pending.length > 1) sign('pending', this.pending, 'pending')
    const cell = settings.cell.value ? this.bench.shownCell() : null
    if (cell)
      for (let k = 0; k < 3; k++)
        if (this.bench.structure.periodic[k])
          put(`cell${k}`, 1.03 * cell[3 * k]!, 1.03 * cell[3 * k + 1]!, 1.03 * cell[3 * k + 2]!, 'abc'[k]!, 'axis')
    this.onLabels(labels)
  }

  /** Place on the canvas, CSS pixels; null behind the eye. */
  project(x: number, y: number, z: number): [number, number] | null {
    const v = this.scratch.set(x, y, z).project(this.camera)
    if (v.z > 1) return null
    return [((v.x + 1) / 2) * this.width, ((1 - v.y) / 2) * this.height]
  }

  /** Where atom `atom` is drawn, CSS pixels. */
  placeOnScreen(atom: number): [number, number] | null {
    return this.project(this.places[3 * atom]!, this.places[3 * atom + 1]!, this.places[3 * atom + 2]!)
  }

  /** What lies under a point of the canvas (CSS pixels). `slack`: how far beside it still counts. */
  pick(x: number, y: number, slack = 4): Hit {
    const origin = this.camera.position
    const ray = this.ray(x, y)
    const perPixel = (2 * Math.tan((FIELD_OF_VIEW * Math.PI) / 360)) / this.height
    let best = Infinity
    let atom: number | undefined
    const n = this.places.length / 3
    for (let i = 0; i < n; i++) {
      const dx = this.places[3 * i]! - origin.x
      const dy = this.places[3 * i + 1]! - origin.y
      const dz = this.places[3 * i + 2]! - origin.z
      const along = dx * ray.x + dy * ray.y + dz * ray.z
      if (along <= 0) continue
      const gap = Math.sqrt(Math.max(0, dx * dx + dy * dy + dz * dz - along * along))
      const reach = this.radii[i]! + slack * perPixel * along
      if (gap > reach) continue
      const depth = along - Math.sqrt(Math.max(0, this.radii[i]! ** 2 - gap * gap))
      if (depth < best) {
        best = depth
        atom = i
      }
    }
    if (atom !== undefined) return { atom }
    let bond: readonly [number, number] | undefined
    let nearest = slack + 3
    for (let b = 0; b < this.bonds.count; b++) {
      const i = this.bonds.first[b]!
      const j = this.bonds.second[b]!
      const from = this.project(this.places[3 * i]!, this.places[3 * i + 1]!, this.places[3 * i + 2]!)
      const to = this.project(
        this.places[3 * j]! + this.bonds.shift[3 * b]!,
        this.places[3 * j + 1]! + this.bonds.shift[3 * b + 1]!,
        this.places[3 * j + 2]! + this.bonds.shift[3 * b + 2]!,
      )
      if (!from || !to) continue
      const d = distanceToSegment(x, y, from, to)
      if (d < nearest) {
        nearest = d
        bond = [i, j]
      }
    }
    return bond ? { bond } : {}
  }

  /** Direction from the eye through a point of the canvas. */
  ray(x: number, y: number): Vector3 {
    return new Vector3((2 * x) / this.width - 1, 1 - (2 * y) / this.height, 0.5)
      .unproject(this.camera)
      .sub(this.camera.position)
      .normalize()
  }

  /** The point under the pointer in the plane through `through` that faces the eye. */
  pointInPlane(x: number, y: number, through: Vec): Vec {
    const ray = this.ray(x, y)
    const normal = new Vector3(0, 0, 1).applyQuaternion(this.turn)
    const offset = new Vector3(...through).sub(this.camera.position)
    const t = offset.dot(normal) / ray.dot(normal)
    return [
      this.camera.position.x + t * ray.x,
      this.camera.position.y + t * ray.y,
      this.camera.position.z + t * ray.z,
    ]
  }

  /** Angstrom per CSS pixel at the target. */
  get scale(): number {
    return (2 * this.distance * Math.tan((FIELD_OF_VIEW * Math.PI) / 360)) / this.height
  }
}

function setLines(lines: LineSegments, positions: number[], colours?: number[]): void {
  const put = (name: string, values: number[]): void => {
    const old = lines.geometry.getAttribute(name)
    if (old && old.array.length === values.length) {
      ;(old.array as Float32Array).set(values)
      old.needsUpdate = true
    } else {
      lines.geometry.dispose()
      lines.geometry.setAttribute(name, new BufferAttribute(new Float32Array(values), 3))
    }
  }
  put('position', positions)
  if (colours) put('color', colours)
}

function distanceToSegment(x: number, y: number, a: [number, number], b: [number, number]): number {
  const dx = b[0] - a[0]
  const dy = b[1] - a[1]
  const length2 = dx * dx + dy * dy
  const t = length2 > 0 ? Math.min(1, Math.max(0, ((x - a[0]) * dx + (y - a[1]) * dy) / length2)) : 0
  return Math.hypot(x - a[0] - t * dx, y - a[1] - t * dy)
}
