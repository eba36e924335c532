/** Mouse, pen and fingers on the picture: turning, moving atoms, rotating bonds, the tools. */

import { signal } from '@preact/signals'
import { Quaternion, Vector3 } from 'three'
import { at, type Vec } from '../chem/geometry'
import type { Workbench } from '../workbench'
import type { Hit, Scene } from './scene'

export type Tool = 'edit' | 'view' | 'add' | 'erase' | 'measure'

/** Movements below this are clicks, CSS pixels. */
const CLICK_SLOP = 5
/** A finger is not a mouse. */
const TOUCH_SLACK = 14

type Gesture =
  | { what: 'turn' | 'pan' | 'roll' }
  | { what: 'atoms'; atoms: readonly number[]; from: Vec; start: readonly Vec[]; begun: boolean }
  | { what: 'bond'; perpendicular: [number, number]; begun: boolean }

export class Pointer {
  readonly tool = signal<Tool>('edit')
  /** Element that the add tool places. */
  readonly element = signal(6)
  readonly pending = signal<readonly number[]>([])

  private readonly pointers = new Map<number, { x: number; y: number }>()
  private gesture: Gesture | undefined
  private pressed: Hit = {}
  private pressedAt = { x: 0, y: 0 }
  private moved = false

  constructor(
    private readonly scene: Scene,
    private readonly bench: Workbench,
  ) {
    const canvas = scene.canvas
    canvas.addEventListener('pointerdown', (e) => this.down(e))
    canvas.addEventListener('pointermove', (e) => this.move(e))
    canvas.addEventListener('pointerup', (e) => this.up(e))
    canvas.addEventListener('pointercancel', (e) => this.up(e, true))
    canvas.addEventListener('pointerleave', () => this.setHover({}))
    canvas.addEventListener('contextmenu', (e) => e.preventDefault())
    canvas.addEventListener('dblclick', (e) => this.doubleClick(e))
    canvas.addEventListener('wheel', (e) => this.wheel(e), { passive: false })
    this.tool.subscribe(() => this.setPending([]))
  }

  setPending(atoms: readonly number[]): void {
    this.pending.value = atoms
    this.scene.pending = atoms
    this.scene.invalidate()
  }

  private place(e: MouseEvent): { x: number; y: number } {
    const box = this.scene.canvas.getBoundingClientRect()
    return { x: e.clientX - box.left, y: e.clientY - box.top }
  }

  private down(e: PointerEvent): void {
    const at = this.place(e)
    this.pointers.set(e.pointerId, at)
    try {
      this.scene.canvas.setPointerCapture(e.pointerId)
    } catch {
      // The pointer is gone already.
    }
    if (this.pointers.size > 1) {
      // A second finger: zoom and pan, whatever the first one began.
      this.finishGesture()
      this.moved = true
      return
    }
    ;(document.activeElement as HTMLElement | null)?.blur?.()
    this.moved = false
    this.pressedAt = at
    this.pressed = this.scene.pick(at.x, at.y, e.pointerType === 'touch' ? TOUCH_SLACK : 4)
    this.gesture = this.begin(e)
  }

  private begin(e: PointerEvent): Gesture {
    if (e.button === 1 || e.button === 2 || e.shiftKey) {
      if (!(e.shiftKey && this.pressed.atom !== undefined)) return { what: 'pan' }
    }
    if (e.altKey || e.ctrlKey || e.metaKey) return { what: 'roll' }
    if (this.tool.value === 'edit' && this.bench.shown.value === null) {
      const { atom, bond } = this.pressed
      const positions = this.bench.structure.positions
      if (atom !== undefined) {
        const selection = this.bench.selection.value
        const atoms = selection.includes(atom) ? selection : [atom]
        return { what: 'atoms', atoms, from: at(positions, atom), start: atoms.map((a) => at(positions, a)), begun: false }
      }
      if (bond) {
        this.bench.selectedBond.value = bond
        this.scene.invalidate()
        const a = this.scene.placeOnScreen(bond[0])
        const b = this.scene.placeOnScreen(bond[1])
        const d = a && b ? [b[0] - a[0], b[1] - a[1]] : [1, 0]
        const length = Math.hypot(d[0]!, d[1]!) || 1
        return { what: 'bond', perpendicular: [-d[1]! / length, d[0]! / length], begun: false }
      }
    }
    return { what: 'turn' }
  }

  private move(e: PointerEvent): void {
    const now = this.place(e)
    const before = this.pointers.get(e.pointerId)
    if (!before) {
      if (e.pointerType !== 'touch') this.setHover(this.tool.value === 'view' ? {} : this.scene.pick(now.x, now.y))
      return
    }
    if (this.pointers.size === 2) {
      this.pinch(e.pointerId, before, now)
      this.pointers.set(e.pointerId, now)
      return
    }
    this.pointers.set(e.pointerId, now)
    if (!this.moved) {
      if (Math.hypot(now.x - this.pressedAt.x, now.y - this.pressedAt.y) < CLICK_SLOP) return
      this.moved = true
    }
    const dx = now.x - before.x
    const dy = now.y - before.y
    const gesture = this.gesture
    switch (gesture?.what) {
      case 'turn':
        this.turn(dx, dy)
        break
      case 'pan':
        this.pan(dx, dy)
        break
      case 'roll':
        this.scene.turn.multiply(new Quaternion().setFromAxisAngle(new Vector3(0, 0, 1), 0.01 * dx))
        this.scene.invalidate()
        break
      case 'atoms': {
        if (!gesture.begun) {
          gesture.begun = true
          this.bench.beginMove(gesture.atoms.length === 1 ? 'Move atom' : 'Move atoms', gesture.atoms)
        }
        const target = this.scene.pointInPlane(now.x, now.y, gesture.from)
        const origin = this.scene.pointInPlane(this.pressedAt.x, this.pressedAt.y, gesture.from)
        const shift = [0, 1, 2].map((k) => target[k]! - origin[k]!)
        this.bench.move(
          gesture.atoms,
          gesture.start.map((p) => [p[0] + shift[0]!, p[1] + shift[1]!, p[2] + shift[2]!]),
        )
        break
      }
      case 'bond': {
        const side = this.bench.rotatableSide()
        if (!side) break
        if (!gesture.begun) {
          gesture.begun = true
          this.bench.beginMove('Rotate bond', side.atoms)
        }
        const along = dx * gesture.perpendicular[0] + dy * gesture.perpendicular[1]
        this.bench.rotateBond(0.7 * along, false)
        break
      }
    }
  }

  private up(e: PointerEvent, cancelled = false): void {
    if (!this.pointers.delete(e.pointerId)) return
    const clicked = !this.moved && !cancelled && this.pointers.size === 0
    this.finishGesture()
    if (clicked && e.button === 0) this.click(e)
  }

  private finishGesture(): void {
    const gesture = this.gesture
    this.gesture = undefined
    if ((gesture?.what === 'atoms' || gesture?.what === 'bond') && gesture.begun) this.bench.endMove()
  }

  private click(e: PointerEvent): void {
    const { atom, bond } = this.pressed
    const bench = this.bench
    switch (this.tool.value) {
      case 'edit':
        if (atom !== undefined) {
          bench.selectedBond.value = null
          const selection = bench.selection.value
          bench.selection.value =
            e.shiftKey || e.pointerType === 'touch'
              ? selection.includes(atom)
                ? selection.filter((a) => a !== atom)
                : [...selection, atom]
              : [atom]
        } else if (bond) {
          bench.selection.value = []
          bench.selectedBond.value = bond
        } else {
          bench.selection.value = []
          bench.selectedBond.value = null
        }
        this.scene.invalidate()
        break
      case 'add':
        if (atom !== undefined) bench.growAtom(atom, this.element.value)
        else {
          const through: Vec = [this.scene.target.x, this.scene.target.y, this.scene.target.z]
          bench.addAtom(this.element.value, this.scene.pointInPlane(this.pressedAt.x, this.pressedAt.y, through))
        }
        break
      case 'erase':
        if (atom !== undefined) bench.deleteAtoms([atom])
        break
      case 'measure':
        this.measureAtom(atom)
        break
      case 'view':
        break
    }
  }

  /** Two atoms measure a distance, a third makes it an angle, a fourth a torsion. A click beside the
   *  atoms, or on the last one again, keeps what there is. */
  private measureAtom(atom: number | undefined): void {
    const pending = this.pending.value
    if (atom === undefined || atom === pending.at(-1)) {
      if (pending.length >= 2) this.bench.addMeasure(pending)
      this.setPending([])
      return
    }
    if (pending.includes(atom)) return
    const next = [...pending, atom]
    if (next.length === 4) {
      this.bench.addMeasure(next)
      this.setPending([])
    } else this.setPending(next)
  }

  private doubleClick(e: MouseEvent): void {
    if (this.tool.value === 'add' || this.tool.value === 'erase') return
    const place = this.place(e)
    const { atom } = this.scene.pick(place.x, place.y)
    if (atom === undefined) this.scene.frame()
    else {
      const p = this.bench.shownPositions()
      this.scene.framed = false
      this.scene.target.set(p[3 * atom]!, p[3 * atom + 1]!, p[3 * atom + 2]!)
      this.scene.invalidate()
    }
  }

  private wheel(e: WheelEvent): void {
    e.preventDefault()
    const lines = e.deltaMode === 1 ? 30 : e.deltaMode === 2 ? 300 : 1
    this.zoom(Math.exp(Math.max(-100, Math.min(100, e.deltaY * lines)) * 0.0018))
  }

  zoom(factor: number): void {
    this.scene.framed = false
    this.scene.distance = Math.min(5000, Math.max(1.5, this.scene.distance * factor))
    this.scene.invalidate()
  }

  turn(dx: number, dy: number): void {
    const angle = 0.0085
    const turn = this.scene.turn
    turn.multiply(new Quaternion().setFromAxisAngle(new Vector3(0, 1, 0), -angle * dx))
    turn.multiply(new Quaternion().setFromAxisAngle(new Vector3(1, 0, 0), -angle * dy))
    turn.normalize()
    this.scene.invalidate()
  }

  pan(dx: number, dy: number): void {
    const shift = new Vector3(-dx, dy, 0).multiplyScalar(this.scene.scale).applyQuaternion(this.scene.turn)
    this.scene.framed = false
    this.scene.target.add(shift)
    this.scene.invalidate()
  }

  private pinch(id: number, before: { x: number; y: number }, now: { x: number; y: number }): void {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1]
    if (!other) return
    const was = Math.hypot(before.x - other.x, before.y - other.y)
    const is = Math.hypot(now.x - other.x, now.y - other.y)
    if (was > 0 && is > 0) this.zoom(was / is)
    this.pan((now.x - before.x) / 2, (now.y - before.y) / 2)
  }

  private setHover(hit: Hit): void {
    const before = this.scene.hover
    if (before.atom === hit.atom && before.bond?.[0] === hit.bond?.[0] && before.bond?.[1] === hit.bond?.[1]) return
    const shown = this.tool.value === 'edit' ? hit : { ...(hit.atom !== undefined ? { atom: hit.atom } : {}) }
    this.scene.hover = shown
    this.scene.canvas.style.cursor =
      shown.atom !== undefined
        ? this.tool.value === 'edit'
          ? 'grab'
          : this.tool.value === 'erase'
            ? 'not-allowed'
            : 'pointer'
        : shown.bond
          ? 'ew-resize'
          : this.tool.value === 'add'
            ? 'crosshair'
            : 'default'
    this.scene.invalidate()
  }
}
