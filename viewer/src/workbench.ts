/** What is on the page: the structure, its run on the server, the frames, the plots, the edits. All
 *  state is here; `scene` draws it and `ui` shows and changes it. */

import { batch, computed, signal } from '@preact/signals'
import { adjacency, findBonds, NO_BONDS, sideOfBond, type Bonds } from './chem/bonds'
import { element } from './chem/elements'
import { add, at, freeDirection, measure, nearestImage, rotateAtoms, scale, sub, unit, type Vec } from './chem/geometry'
import {
  copyOf,
  emptyStructure,
  MAX_ATOMS,
  selectAtoms,
  structure as makeStructure,
  withAtom,
  type Structure,
} from './chem/structure'
import { thermalVelocities } from './chem/velocities'
import { Integrator } from './generated/session_pb'
import { authorized, httpUrl, keepToken, takeToken } from './protocol/address'
import { Connection, type Status } from './protocol/connection'
import { Exchange, SimType, type Frame, type Heard, type Parameters, type Run } from './protocol/exchange'
import { inWords, type Severity } from './protocol/notices'
import { History } from './record/history'
import { recordLabel } from './record/label'
import { Series } from './record/series'
import { Timeline, type TimelineFrame } from './record/timeline'
import { keptStructure, keepStructure, sessionMemory } from './memory'
import { settings } from './settings'

export type Kind = 'md' | 'relax'

/** The numbers that are shown as text. */
export interface Reading {
  energy: number | undefined
  temperature: number | undefined
  kinetic: number | undefined
  fmax: number | undefined
  step: number
  timeFs: number
  framesPerSecond: number
  stepsPerSecond: number
}

export interface LogEntry {
  id: number
  when: Date
  severity: Severity
  title: string
  detail: string
}

export interface ServerInfo {
  version: string
  model: string
  task: string
  tasks: string[]
  /** By task: the atomic numbers it was trained with; empty = not told. */
  elements: Record<string, readonly number[]>
  device: string
  workers: number
  maxAtoms: number
  records: boolean
}

const NO_READING: Reading = {
  energy: undefined,
  temperature: undefined,
  kinetic: undefined,
  fmax: undefined,
  step: 0,
  timeFs: 0,
  framesPerSecond: 0,
  stepsPerSecond: 0,
}

/** Edits that may be on their way before newer positions of the same drag are held back. */
const DRAGS_UNDER_WAY = 2
/** ... but not for longer than this, ms. */
const DRAG_PATIENCE_MS = 200
/** Least time between two frames while stepping, ms: longer than a message takes to the server. */
const STEP_PAUSE_MS = 500
const TIMELINE_FRAMES = 5000
const TIMELINE_BYTES = 96 << 20
const LOG_ENTRIES = 200

export class Workbench {
  // What is shown. The structure is changed in place by frames; `revision` says that it was.
  structure: Structure = emptyStructure()
  forces: Float64Array = new Float64Array(0)
  bonds: Bonds = NO_BONDS
  private bondsAt = 0
  private bondsCost = 0
  revision = 0

  readonly atoms = signal(0)
  readonly name = signal('')
  /** Rises when elements, cell, charge, spin, task or name change. */
  readonly identity = signal(0)
  readonly selection = signal<readonly number[]>([])
  readonly selectedBond = signal<readonly [number, number] | null>(null)
  readonly measures = signal<readonly (readonly number[])[]>([])

  readonly status = signal<Status>({ state: 'connecting' })
  readonly server = signal<ServerInfo | null>(null)
  readonly run = signal<Run>('idle')
  readonly runKind = signal<Kind>('md')
  readonly reading = signal<Reading>(NO_READING)
  readonly log = signal<readonly LogEntry[]>([])
  readonly toast = signal<LogEntry | null>(null)
  readonly undoLabel = signal<string | undefined>(undefined)
  readonly redoLabel = signal<string | undefined>(undefined)
  readonly recording = signal<string>('')
  readonly computing = signal(false)

  readonly timelineRange = signal<{ first: number; last: number } | undefined>(undefined)
  /** The frame that is shown instead of the live state. */
  readonly shown = signal<number | null>(null)
  readonly playing = signal(false)
  readonly playbackRate = signal(1)

  readonly running = computed(() => this.run.value !== 'idle')
  readonly online = computed(() => this.status.value.state === 'online')

  readonly timeline = new Timeline(TIMELINE_FRAMES, TIMELINE_BYTES)
  readonly mdSeries = new Series(4)
  readonly relaxSeries = new Series(2)

  /** Rises with every sample of a series. */
  latestSample(kind: Kind): number {
    return kind === 'md' ? this.mdSamples : this.relaxSamples
  }
  private mdSamples = 0
  private relaxSamples = 0

  private readonly history = new History()
  private readonly exchange = new Exchange()
  private readonly connection: Connection
  private latest: Reading = NO_READING
  private readingDue = false
  private lastLogId = 0
  /** Frames whose edit counter is lower belong to another structure. */
  private structureEdit = 0
  /** Atoms whose place is the user's until a frame contains this edit. */
  private readonly mine = new Map<number, number>()
  private readonly dragged = new Map<number, Vec>()
  private holding: readonly number[] = []
  private dragSentAt = 0
  private stepping = false
  private wanted: Kind | null = null
  private frameTimes: { when: number; step: number }[] = []
  private parameterTimer: ReturnType<typeof setTimeout> | undefined
  /** The server's clock and counter, and what is added to them for display: they go on from zero for a
   *  new structure and from the chosen frame after going back. */
  private serverTimeFs = 0
  private serverStep = 0
  private timeShift = 0
  private stepShift = 0

  constructor() {
    this.connection = new Connection(
      this.exchange,
      sessionMemory,
      {
        status: (status) => {
          this.status.value = status
          if (status.state === 'online') void this.askServer()
          if (status.state !== 'online') this.computing.value = false
        },
        ready: (heard) => this.ready(heard),
        heard: (heard) => this.heard(heard),
      },
      takeToken(),
    )
  }

  /** Connects; `first` is shown where no earlier work of this tab is found. */
  begin(first: Structure): void {
    const kept = keptStructure()
    this.adopt(kept ?? first)
    addEventListener('pagehide', () => keepStructure(this.structure))
    this.connection.connect()
  }

  get token(): string {
    return this.connection.token
  }

  unlock(token: string): void {
    keepToken(token)
    this.connection.token = token
    this.connection.connect()
  }

  reconnect(): void {
    this.connection.connect()
  }

  /** Stops everything and begins a new session with the present structure. */
  endSession(): void {
    this.wanted = null
    this.connection.end()
  }

  // --- structure ---------------------------------------------------------------------------------

  /** Shows another structure and sends it to the server. */
  load(structure: Structure, label = 'Open'): void {
    const limit = this.server.value?.maxAtoms ?? MAX_ATOMS
    if (structure.numbers.length > limit) {
      this.say('error', 'Too large', `${structure.numbers.length} atoms; this server takes ${limit}.`)
      return
    }
    if (this.atoms.value > 0) this.remember(label)
    this.toast.value = null // said of what was here before
    this.replace(structure)
  }

  /** Everything of the structure is new; what was measured of the old one is gone. */
  private replace(structure: Structure): void {
    this.wanted = null
    this.adopt(structure)
    this.upload()
  }

  private adopt(structure: Structure): void {
    batch(() => {
      const sameAtoms = sameNumbers(this.structure.numbers, structure.numbers)
      this.structure = copyOf(structure)
      this.forces = new Float64Array(0)
      this.mine.clear()
      this.dragged.clear()
      this.holding = []
      if (!sameAtoms) {
        this.selection.value = []
        this.selectedBond.value = null
        this.measures.value = []
      }
      this.timeline.clear()
      this.mdSeries.clear()
      this.relaxSeries.clear()
      this.frameTimes = []
      this.latest = NO_READING
      this.timeShift = -this.serverTimeFs
      this.stepShift = 0
      this.serverStep = 0
      this.reading.value = NO_READING
      this.timelineRange.value = undefined
      this.shown.value = null
      this.playing.value = false
      this.atoms.value = structure.numbers.length
      this.name.value = structure.name
      this.identity.value++
      this.bonds = NO_BONDS
      this.updateBonds(true)
      this.revision++
    })
  }

  /** Sends the whole structure. */
  private upload(): void {
    const s = this.structure
    const n = s.numbers.length
    const indices = Array.from({ length: n }, (_, i) => i)
    const moving = s.velocities.some((v) => v !== 0)
    this.structureEdit = this.exchange.edit({
      natoms: n,
      atomicNumbers: { indices, values: Array.from(s.numbers) },
      positions: { indices, coords: Array.from(s.positions) },
      ...(moving ? { velocities: { indices, coords: Array.from(s.velocities) } } : {}),
      ...(s.cell ? { cell: { m: Array.from(s.cell) } } : {}),
      ...(s.cell ? { periodicity: { a: s.periodic[0], b: s.periodic[1], c: s.periodic[2] } } : {}),
      fullUpdateFlag: { case: 'fullUpdate', value: true },
      charge: s.charge,
      ...(s.spin > 0 ? { spinMultiplicity: s.spin } : {}),
      ...(s.task ? { task: s.task } : {}),
    })
    this.computing.value = n > 0 && this.online.value
    keepStructure(s)
  }

  /** Changes charge, spin, task, cell or name; undoable. */
  change(label: string, change: Partial<Structure>): void {
    this.remember(label)
    const next = { ...copyOf(this.structure), ...change }
    if (Object.keys(change).every((key) => key === 'name')) {
      this.structure.name = next.name
      this.name.value = next.name
      this.identity.value++
      keepStructure(this.structure)
      return
    }
    this.replace(next)
  }

  private remember(label: string): void {
    this.history.remember(label, this.structure)
    this.undoLabel.value = this.history.undoLabel
    this.redoLabel.value = this.history.redoLabel
  }

  undo(): void {
    this.travel(this.history.undo(this.structure))
  }

  redo(): void {
    this.travel(this.history.redo(this.structure))
  }

  private travel(to: Structure | undefined): void {
    if (to) this.replace(to)
    this.undoLabel.value = this.history.undoLabel
    this.redoLabel.value = this.history.redoLabel
  }

  // --- edits -------------------------------------------------------------------------------------

  /** Begins moving atoms; they are the user's until `endMove`. */
  beginMove(label: string, atoms: readonly number[]): void {
    this.goLive()
    if (!this.running.value) this.remember(label)
    this.holding = atoms
  }

  /** Puts atoms at new places; sent when the wire has room for it. */
  move(atoms: readonly number[], positions: readonly Vec[]): void {
    atoms.forEach((atom, i) => {
      this.structure.positions.set(positions[i]!, 3 * atom)
      this.dragged.set(atom, positions[i]!)
    })
    this.touched()
    this.flushMoves()
  }

  endMove(): void {
    this.holding = []
    this.flushMoves(true)
    keepStructure(this.structure)
  }

  /** Rotates the smaller side of the selected bond. */
  rotateBond(degrees: number, remember = true): boolean {
    const side = this.rotatableSide()
    if (!side) return false
    if (remember) this.beginMove('Rotate bond', side.atoms)
    const positions = this.structure.positions
    rotateAtoms(positions, side.atoms, at(positions, side.from), at(positions, side.to), (degrees * Math.PI) / 180)
    this.move(side.atoms, side.atoms.map((atom) => at(positions, atom)))
    if (remember) this.endMove()
    return true
  }

  /** The side that turns: the one with fewer atoms; null for bonds in rings. */
  rotatableSide(): { from: number; to: number; atoms: number[] } | null {
    const bond = this.selectedBond.value
    if (!bond) return null
    const neighbours = adjacency(this.structure.numbers.length, this.bonds)
    const [a, b] = bond
    const far = sideOfBond(neighbours, a, b)
    const near = sideOfBond(neighbours, b, a)
    if (!far || !near) return null
    return far.length <= near.length ? { from: a, to: b, atoms: far } : { from: b, to: a, atoms: near }
  }

  /** A new atom, free at `position`. */
  addAtom(number: number, position: Vec): void {
    this.insist()
    this.remember(`Add ${element(number).symbol}`)
    this.replaceAtoms(withAtom(this.structure, number, position))
    this.selection.value = [this.structure.numbers.length - 1]
  }

  /** A new atom bonded to `atom`, where there is most room. */
  growAtom(atom: number, number: number): void {
    const s = this.structure
    const here = at(s.positions, atom)
    const neighbours = adjacency(s.numbers.length, this.bonds)[atom]!
    const directions = neighbours.map((j) => unit(nearestImage(sub(at(s.positions, j), here), s)))
    const length = element(number).covalent + element(s.numbers[atom]!).covalent
    this.addAtom(number, add(here, scale(freeDirection(directions), length)))
  }

  changeElement(atoms: readonly number[], number: number): void {
    if (atoms.length === 0) return
    this.insist()
    this.remember(`Change to ${element(number).symbol}`)
    const next = copyOf(this.structure)
    for (const atom of atoms) next.numbers[atom] = number
    const selection = this.selection.value
    this.replace(next)
    this.selection.value = selection
  }

  deleteAtoms(atoms: readonly number[]): void {
    if (atoms.length === 0) return
    this.insist()
    this.remember(atoms.length === 1 ? 'Delete atom' : `Delete ${atoms.length} atoms`)
    const gone = new Set(atoms)
    const keep = Array.from({ length: this.structure.numbers.length }, (_, i) => i).filter((i) => !gone.has(i))
    this.replaceAtoms(selectAtoms(this.structure, keep))
  }

  private replaceAtoms(next: Structure): void {
    this.replace({ ...next, name: next.name })
  }

  /** Edits apply to the live state. */
  private insist(): void {
    this.goLive()
  }

  /** Sends dragged positions unless enough is under way already. */
  flushMoves(force = false): void {
    if (this.dragged.size === 0) return
    const now = performance.now()
    const room = this.exchange.editsUnderWay < DRAGS_UNDER_WAY || now - this.dragSentAt > DRAG_PATIENCE_MS
    if (!force && !room) return
    const indices = [...this.dragged.keys()].sort((a, b) => a - b)
    const coords = indices.flatMap((atom) => this.dragged.get(atom)!)
    const number = this.exchange.edit({
      positions: { indices, coords },
      // What is held does not gather speed.
      ...(this.running.value ? { velocities: { indices, coords: coords.map(() => 0) } } : {}),
      fullUpdateFlag: { case: 'fullUpdate', value: false },
    })
    for (const atom of indices) this.mine.set(atom, number)
    this.dragged.clear()
    this.dragSentAt = now
  }

  private touched(): void {
    this.revision++
  }

  // --- simulation --------------------------------------------------------------------------------

  parameters(): Parameters {
    const md = settings.kind.value === 'md'
    const integrators = {
      langevin: Integrator.LANGEVIN,
      velocity_verlet: Integrator.VELOCITY_VERLET,
      bfgs: Integrator.BFGS,
      lbfgs: Integrator.LBFGS,
      fire: Integrator.FIRE,
    }
    return {
      calculator: 'uma',
      temperature: settings.temperature.value,
      timestepFs: settings.timestepFs.value,
      friction: settings.friction.value,
      fmax: settings.fmax.value,
      maxStep: settings.maxStep.value,
      integrator: integrators[md ? settings.mdIntegrator.value : settings.relaxIntegrator.value],
      stepsPerFrame: md ? settings.stepsPerFrame.value : 1,
      frameIntervalMs: Math.round(1000 / settings.framesPerSecond.value),
      ...(this.server.value?.records
        ? { record: settings.record.value, recordLabel: recordLabel(this.structure.name) }
        : {}),
    }
  }

  play(): void {
    if (this.atoms.value === 0) {
      this.say('info', 'Nothing to simulate', 'Open an example or a file, or add atoms.')
      return
    }
    this.goLive()
    this.stepping = false
    this.remember(settings.kind.value === 'md' ? 'Dynamics' : 'Relaxation')
    this.launch(this.parameters())
  }

  /** One step, shown as one frame. */
  step(): void {
    if (this.atoms.value === 0 || this.running.value) return
    this.goLive()
    this.stepping = true
    // The STOP arrives before a second frame would be due; the server counts the pause from the last
    // frame, so that steps can follow each other twice a second.
    this.launch({ ...this.parameters(), stepsPerFrame: 1, frameIntervalMs: STEP_PAUSE_MS })
  }

  private launch(parameters: Parameters): void {
    const kind = settings.kind.value
    const s = this.structure
    if (kind === 'md' && settings.temperature.value > 0 && !s.velocities.some((v) => v !== 0)) this.heat()
    if (kind !== this.runKind.value) this.frameTimes = []
    this.runKind.value = kind
    this.wanted = this.stepping ? null : kind
    this.exchange.start(kind === 'md' ? SimType.MD : SimType.RELAX, parameters)
    this.run.value = this.exchange.run
  }

  /** Velocities of the bath's temperature, drawn here. */
  heat(): void {
    const s = this.structure
    s.velocities = thermalVelocities(s.numbers, s.positions, settings.temperature.value, !s.cell)
    const indices = Array.from({ length: s.numbers.length }, (_, i) => i)
    this.exchange.edit({
      velocities: { indices, coords: Array.from(s.velocities) },
      fullUpdateFlag: { case: 'fullUpdate', value: false },
    })
  }

  pause(): void {
    this.wanted = null
    this.exchange.stop()
    this.run.value = this.exchange.run
    keepStructure(this.structure)
  }

  toggle(): void {
    if (this.running.value) this.pause()
    else this.play()
  }

  /** Parameters were changed: a running simulation goes on with them. */
  parametersChanged(): void {
    if (!this.running.value || this.stepping) return
    clearTimeout(this.parameterTimer)
    this.parameterTimer = setTimeout(() => {
      if (this.run.value === 'running' || this.run.value === 'starting') this.launch(this.parameters())
    }, 250)
  }

  setDetached(detached: boolean): void {
    settings.detached.value = detached
    if (this.online.value) this.exchange.setDetached(detached)
  }

  // --- timeline ----------------------------------------------------------------------------------

  /** Shows a frame of the timeline; null = the live state. */
  show(id: number | null): void {
    const range = this.timeline.range
    if (id === null || !range) {
      this.shown.value = null
      this.playing.value = false
    } else {
      this.shown.value = Math.min(range.last, Math.max(range.first, id))
    }
    this.updateBonds(true)
    this.revision++
  }

  goLive(): void {
    if (this.shown.value !== null) this.show(null)
  }

  /** The frame that is shown instead of the live state. */
  shownFrame(): TimelineFrame | undefined {
    return this.shown.value === null ? undefined : this.timeline.get(this.shown.value)
  }

  /** Positions to draw, Angstrom. */
  shownPositions(): ArrayLike<number> {
    return this.shownFrame()?.positions ?? this.structure.positions
  }

  /** Forces to draw, eV/Angstrom; empty if they are not known. */
  shownForces(): ArrayLike<number> {
    return this.shownFrame()?.forces ?? this.forces
  }

  shownCell(): Float64Array | null {
    return this.shownFrame()?.cell ?? this.structure.cell
  }

  /** Makes the shown frame the state to go on from. */
  continueFromShown(): void {
    const frame = this.shownFrame()
    if (!frame) return
    if (this.running.value) this.pause()
    this.remember('Continue from a frame')
    this.timeline.cutAfter(frame.id)
    this.mdSeries.cutAfter(frame.timeFs / 1000)
    this.relaxSeries.cutAfter(frame.step)
    this.structure.positions = Float64Array.from(frame.positions)
    this.structure.velocities = Float64Array.from(frame.velocities)
    if (frame.cell) this.structure.cell = frame.cell.slice()
    this.timeShift = frame.timeFs - this.serverTimeFs
    this.stepShift = frame.step - this.serverStep
    this.latest = { ...this.latest, step: frame.step, timeFs: frame.timeFs }
    this.show(null)
    this.timelineRange.value = this.timeline.range
    const indices = Array.from({ length: this.structure.numbers.length }, (_, i) => i)
    this.structureEdit = this.exchange.edit({
      positions: { indices, coords: Array.from(this.structure.positions) },
      velocities: { indices, coords: Array.from(this.structure.velocities) },
      ...(this.structure.cell ? { cell: { m: Array.from(this.structure.cell) } } : {}),
      fullUpdateFlag: { case: 'fullUpdate', value: false },
    })
    this.computing.value = this.online.value
    this.touched()
  }

  /** Elements of `structure` that the model was not trained with, for its task. */
  untrained(structure: Pick<Structure, 'numbers' | 'task'>): number[] {
    const server = this.server.value
    const known = server?.elements[structure.task || server.task] ?? []
    if (known.length === 0) return []
    return [...new Set(structure.numbers)].filter((z) => !known.includes(z))
  }

  // --- measuring ---------------------------------------------------------------------------------

  addMeasure(atoms: readonly number[]): void {
    if (atoms.length < 2 || atoms.length > 4) return
    const key = atoms.join()
    if (this.measures.value.some((m) => m.join() === key)) return
    this.measures.value = [...this.measures.value, [...atoms]]
    this.touched()
  }

  removeMeasure(index: number): void {
    this.measures.value = this.measures.value.filter((_, i) => i !== index)
    this.touched()
  }

  measured(atoms: readonly number[]): ReturnType<typeof measure> {
    const cell = this.shownCell()
    return measure({ cell, periodic: this.structure.periodic }, this.shownPositions(), atoms)
  }

  // --- what the server says ----------------------------------------------------------------------

  private ready(heard: Extract<Heard, { what: 'state' }> | null): void {
    const again = this.wanted
    if (heard && heard.state.resumed && !heard.lost && heard.state.atomicNumbers.length > 0) {
      this.resume(heard)
      return
    }
    if (heard?.state.resumed) this.say('warning', 'Reconnected', 'Some changes had not arrived; they were sent again.')
    else if (again) this.say('warning', 'Reconnected', 'The server no longer had this session; it goes on from the last frame.')
    this.run.value = this.exchange.run
    if (this.running.value) this.exchange.stop()
    // The server counts from zero again; time and steps on the page go on.
    this.serverTimeFs = 0
    this.serverStep = 0
    this.timeShift = this.latest.timeFs
    this.stepShift = this.latest.step
    this.upload()
    if (settings.detached.value && heard) this.exchange.setDetached(true)
    if (again) {
      settings.kind.value = again
      this.launch(this.parameters())
    }
  }

  /** The server still has the session: its state counts. */
  private resume(heard: Extract<Heard, { what: 'state' }>): void {
    const { state, step } = heard
    const frame = state.frame
    const n = state.atomicNumbers.length
    const now = this.structure
    const same = sameNumbers(now.numbers, state.atomicNumbers)
    if (!same || this.timeline.length === 0) {
      const next = makeStructure(same ? now.name : 'Resumed session', state.atomicNumbers, frame?.positions ?? [])
      if (next.positions.length !== 3 * n) {
        this.upload()
        return
      }
      next.cell = frame?.cell ? Float64Array.from(frame.cell.m) : null
      const p = state.periodicity
      next.periodic = next.cell ? [p?.a ?? true, p?.b ?? true, p?.c ?? true] : [false, false, false]
      next.charge = state.charge
      next.spin = now.spin === 0 && same ? 0 : state.spinMultiplicity
      next.task = now.task === '' && same ? '' : state.task
      this.adopt(next)
    }
    const s = this.structure
    if (frame && frame.positions.length === 3 * n) s.positions.set(frame.positions)
    if (frame && frame.velocities.length === 3 * n) s.velocities.set(frame.velocities)
    if (frame && frame.forces.length === 3 * n) this.forces = Float64Array.from(frame.forces)
    this.mine.clear()
    this.dragged.clear()
    this.structureEdit = 0
    // A server that was restarted does the steps since its last checkpoint again.
    this.serverStep = step
    this.serverTimeFs = frame?.timeFs ?? this.serverTimeFs
    const shownStep = step + this.stepShift
    this.timeline.cutAfterStep(shownStep)
    this.mdSeries.cutAfter((this.serverTimeFs + this.timeShift) / 1000)
    this.relaxSeries.cutAfter(shownStep)
    this.timelineRange.value = this.timeline.range
    this.recording.value = state.recording ?? ''
    settings.detached.value = state.detached
    this.run.value = this.exchange.run
    if (state.running) {
      this.runKind.value = state.simulationType === SimType.MD ? 'md' : 'relax'
      this.wanted = this.runKind.value
      settings.kind.value = this.runKind.value
      if (state.parameters) this.showParameters(state.parameters)
    } else this.wanted = null
    this.latest = {
      ...this.latest,
      energy: frame?.energy,
      temperature: frame?.temperature,
      fmax: frame?.fmax,
      step: shownStep,
      timeFs: this.serverTimeFs + this.timeShift,
    }
    this.readingDue = true
    this.computing.value = false
    // A stop drops what was known of the forces: an edit that changes nothing asks for them again.
    if (!state.running && frame?.energy === undefined) {
      this.exchange.edit({ fullUpdateFlag: { case: 'fullUpdate', value: false } })
      this.computing.value = true
    }
    this.updateBonds(true)
    this.touched()
    this.say('good', 'Session resumed', state.running ? 'The simulation is running.' : `At step ${step}.`)
  }

  private showParameters(p: NonNullable<Extract<Heard, { what: 'state' }>['state']['parameters']>): void {
    if (p.timestepFs > 0) settings.timestepFs.value = p.timestepFs
    settings.temperature.value = p.temperature
    settings.friction.value = p.friction
    if (p.maxStep > 0) settings.maxStep.value = p.maxStep
    if (p.integrator === Integrator.LANGEVIN) settings.mdIntegrator.value = 'langevin'
    if (p.integrator === Integrator.VELOCITY_VERLET) settings.mdIntegrator.value = 'velocity_verlet'
    if (p.integrator === Integrator.BFGS) settings.relaxIntegrator.value = 'bfgs'
    if (p.integrator === Integrator.LBFGS) settings.relaxIntegrator.value = 'lbfgs'
    if (p.integrator === Integrator.FIRE) settings.relaxIntegrator.value = 'fire'
    if (p.stepsPerFrame) settings.stepsPerFrame.value = p.stepsPerFrame
  }

  private heard(heard: Heard): void {
    if (heard.what === 'frame') this.frame(heard)
    else if (heard.what === 'notice') this.notice(heard)
    this.run.value = this.exchange.run
  }

  private notice({ message, stopped }: Extract<Heard, { what: 'notice' }>): void {
    const words = inWords(message)
    this.computing.value = false
    const expected = message === 'SIMULATION_STOPPED' || (message === 'IDLE_WAITING_FOR_GEOMETRY' && this.atoms.value === 0)
    if (stopped && !expected) this.wanted = null
    this.note(words.severity, words.title, words.detail, !expected)
  }

  private frame(heard: Extract<Heard, { what: 'frame' }>): void {
    const { frame, simulated, edits } = heard
    const s = this.structure
    const n = s.numbers.length
    // A frame of the structure before an upload that is still on its way.
    if (edits < this.structureEdit || frame.positions.length !== 3 * n) return
    for (const [atom, number] of this.mine) if (number <= edits) this.mine.delete(atom)
    const kept = [...new Set([...this.mine.keys(), ...this.dragged.keys(), ...this.holding])]
    const places = kept.map((atom) => at(s.positions, atom))
    s.positions.set(frame.positions)
    kept.forEach((atom, i) => s.positions.set(places[i]!, 3 * atom))
    if (frame.velocities.length === 3 * n) s.velocities.set(frame.velocities)
    if (frame.forces.length === 3 * n) {
      if (this.forces.length !== 3 * n) this.forces = new Float64Array(3 * n)
      this.forces.set(frame.forces)
    }
    if (frame.cell && frame.cell.m.length === 9) s.cell = Float64Array.from(frame.cell.m)
    if (simulated) {
      this.serverStep = heard.step
      this.serverTimeFs = frame.timeFs ?? this.serverTimeFs
    }
    const step = this.serverStep + this.stepShift
    const timeFs = this.serverTimeFs + this.timeShift
    if (heard.current) this.computing.value = false
    this.latest = {
      ...this.latest,
      energy: frame.energy,
      temperature: frame.temperature ?? (simulated ? undefined : this.latest.temperature),
      kinetic: frame.kinetic,
      fmax: frame.fmax,
      step: simulated ? step : this.latest.step,
      timeFs: simulated ? timeFs : this.latest.timeFs,
    }
    this.readingDue = true
    this.touched()
    if (simulated) this.simulated(frame, step, timeFs)
    // A still hand holds its atom while the others move.
    if (this.holding.length > 0 && this.running.value && this.dragged.size === 0)
      for (const atom of this.holding) this.dragged.set(atom, at(s.positions, atom))
    this.flushMoves()
  }

  private simulated(frame: Frame, step: number, timeFs: number): void {
    const kind = frame.kinetic === undefined ? 'relax' : 'md'
    this.runKind.value = kind
    const kept = this.timeline.push({
      kind,
      step,
      timeFs,
      energy: frame.energy ?? NaN,
      temperature: frame.temperature,
      kinetic: frame.kinetic,
      fmax: frame.fmax,
      positions: Float32Array.from(frame.positions),
      velocities: Float32Array.from(frame.velocities),
      forces: Float32Array.from(frame.forces),
      cell: frame.cell ? Float64Array.from(frame.cell.m) : null,
    })
    if (kind === 'md') {
      this.mdSamples++
      this.mdSeries.push(timeFs / 1000, [
        frame.energy ?? NaN,
        (frame.energy ?? NaN) + (frame.kinetic ?? NaN),
        frame.temperature ?? NaN,
        frame.fmax ?? NaN,
      ])
    } else {
      this.relaxSamples++
      this.relaxSeries.push(step, [frame.energy ?? NaN, frame.fmax ?? NaN])
    }
    const now = performance.now()
    this.frameTimes.push({ when: now, step: kept.step })
    while (this.frameTimes.length > 2 && now - this.frameTimes[0]!.when > 3000) this.frameTimes.shift()
    if (this.stepping) {
      this.stepping = false
      this.exchange.stop()
      this.run.value = this.exchange.run
    } else if (kind === 'relax' && this.wanted === 'relax' && (frame.fmax ?? Infinity) < settings.fmax.value) {
      this.pause()
      this.note('good', 'Converged', `Largest force ${(frame.fmax ?? 0).toFixed(4)} eV/Å after step ${step}.`, true)
    }
  }

  /** Called before every picture: text readings a few times a second, bonds as they can be afforded. */
  tick(now: number): void {
    this.flushMoves()
    this.updateBonds(false)
    if (!this.readingDue || now - this.lastReadingAt < 100) return
    this.readingDue = false
    this.lastReadingAt = now
    const times = this.frameTimes
    const span = times.length > 1 ? (times.at(-1)!.when - times[0]!.when) / 1000 : 0
    batch(() => {
      this.reading.value = {
        ...this.latest,
        framesPerSecond: span > 0 ? (times.length - 1) / span : 0,
        stepsPerSecond: span > 0 ? (times.at(-1)!.step - times[0]!.step) / span : 0,
      }
      this.timelineRange.value = this.timeline.range
    })
  }
  private lastReadingAt = 0

  private bondsRevision = -1

  /** Bonds follow the atoms: at every picture while that is cheap, less often for large systems. */
  private updateBonds(force: boolean): void {
    const now = performance.now()
    if (!force && (this.bondsRevision === this.revision || now - this.bondsAt < 6 * this.bondsCost)) return
    const s = { numbers: this.structure.numbers, cell: this.shownCell(), periodic: this.structure.periodic }
    const positions = this.shownPositions()
    if (positions.length === 3 * s.numbers.length) this.bonds = findBonds(s, positions, force ? NO_BONDS : this.bonds)
    const after = performance.now()
    this.bondsCost = after - now
    this.bondsAt = after
    this.bondsRevision = this.revision
  }

  // --- words -------------------------------------------------------------------------------------

  /** Something the user should see. */
  say(severity: Severity, title: string, detail = ''): void {
    this.note(severity, title, detail, true)
  }

  private note(severity: Severity, title: string, detail: string, show: boolean): void {
    const entry: LogEntry = { id: ++this.lastLogId, when: new Date(), severity, title, detail }
    batch(() => {
      this.log.value = [...this.log.value.slice(-LOG_ENTRIES + 1), entry]
      if (show) this.toast.value = entry
    })
  }

  private async askServer(): Promise<void> {
    try {
      const answer = await fetch(httpUrl('serve/health'), authorized(this.token))
      if (!answer.ok) return
      const body = (await answer.json()) as Record<string, unknown>
      const text = (key: string): string => (typeof body[key] === 'string' ? (body[key] as string) : '')
      this.server.value = {
        version: text('version'),
        model: text('model'),
        task: text('task'),
        tasks: Array.isArray(body.tasks) ? body.tasks.filter((t): t is string => typeof t === 'string') : [],
        elements: elementsOf(body.elements),
        device: text('device'),
        workers: typeof body.workers === 'number' ? body.workers : 0,
        maxAtoms: typeof body.max_atoms === 'number' && body.max_atoms > 0 ? body.max_atoms : MAX_ATOMS,
        records: body.recording === true,
      }
    } catch {
      // Asked again at the next connection.
    }
  }
}

function elementsOf(value: unknown): Record<string, readonly number[]> {
  if (typeof value !== 'object' || value === null) return {}
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, number[]] => Array.isArray(entry[1]) && entry[1].every((z) => typeof z === 'number')),
  )
}

function sameNumbers(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}
