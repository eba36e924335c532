/** A structure: what is simulated. Angstrom; velocities in Angstrom / (ASE time unit). */

import { element } from './elements'

/** Nine numbers, row-major, rows are lattice vectors, Angstrom. */
export type Cell = Float64Array

export interface Structure {
  name: string
  numbers: Uint8Array
  /** 3N, Angstrom */
  positions: Float64Array
  /** 3N, Angstrom / (ASE time unit) */
  velocities: Float64Array
  cell: Cell | null
  periodic: [boolean, boolean, boolean]
  charge: number
  /** 2S+1; 0 = not given */
  spin: number
  /** UMA task; '' = the server's default */
  task: string
}

/** Most atoms that the page accepts; the server has its own limit. */
export const MAX_ATOMS = 100_000

export function emptyStructure(): Structure {
  return structure('Nothing yet', [], [])
}

export function structure(
  name: string,
  numbers: ArrayLike<number>,
  positions: ArrayLike<number>,
  rest: Partial<Omit<Structure, 'name' | 'numbers' | 'positions'>> = {},
): Structure {
  return {
    name,
    numbers: Uint8Array.from(numbers),
    positions: Float64Array.from(positions),
    velocities: rest.velocities ?? new Float64Array(3 * numbers.length),
    cell: rest.cell ?? null,
    periodic: rest.periodic ?? (rest.cell ? [true, true, true] : [false, false, false]),
    charge: rest.charge ?? 0,
    spin: rest.spin ?? 0,
    task: rest.task ?? '',
  }
}

export function copyOf(s: Structure): Structure {
  return {
    ...s,
    numbers: s.numbers.slice(),
    positions: s.positions.slice(),
    velocities: s.velocities.slice(),
    cell: s.cell ? s.cell.slice() : null,
    periodic: [...s.periodic],
  }
}

/** Hill order: C, H, then the alphabet; without carbon all by the alphabet. */
export function formula(numbers: ArrayLike<number>): [symbol: string, count: number][] {
  const counts = new Map<string, number>()
  for (let i = 0; i < numbers.length; i++) {
    const symbol = element(numbers[i]!).symbol
    counts.set(symbol, (counts.get(symbol) ?? 0) + 1)
  }
  const organic = counts.has('C')
  const rank = (s: string): string => (organic ? (s === 'C' ? ' ' : s === 'H' ? '!' : s) : s)
  return [...counts].sort(([a], [b]) => (rank(a) < rank(b) ? -1 : 1))
}

export function formulaText(numbers: ArrayLike<number>): string {
  return formula(numbers)
    .map(([symbol, count]) => (count === 1 ? symbol : symbol + count))
    .join('')
}

const MULTIPLETS = ['', 'singlet', 'doublet', 'triplet', 'quartet', 'quintet', 'sextet', 'septet']

/** The word for a spin multiplicity, with its article. */
export function multiplet(multiplicity: number): string {
  return `a ${MULTIPLETS[multiplicity] ?? `state of multiplicity ${multiplicity}`}`
}

/** Number of electrons where no such multiplicity exists for it: an even number of electrons has an
 *  even number of unpaired ones. Undefined where all is well, or where no multiplicity (0) is given. */
export function impossibleSpin(numbers: ArrayLike<number>, charge: number, multiplicity: number): number | undefined {
  if (multiplicity === 0 || numbers.length === 0) return undefined
  let electrons = -charge
  for (let i = 0; i < numbers.length; i++) electrons += numbers[i]!
  const paired = electrons - (multiplicity - 1)
  return paired < 0 || paired % 2 !== 0 ? electrons : undefined
}

/** The structure with atoms `keep` only, in that order. */
export function selectAtoms(s: Structure, keep: readonly number[]): Structure {
  const pick = (from: Float64Array): Float64Array => {
    const to = new Float64Array(3 * keep.length)
    keep.forEach((atom, i) => to.set(from.subarray(3 * atom, 3 * atom + 3), 3 * i))
    return to
  }
  return {
    ...copyOf(s),
    numbers: Uint8Array.from(keep, (atom) => s.numbers[atom]!),
    positions: pick(s.positions),
    velocities: pick(s.velocities),
  }
}

/** The structure with one more atom at `position`, at rest. */
export function withAtom(s: Structure, number: number, position: ArrayLike<number>): Structure {
  const n = s.numbers.length
  const grown = (from: Float64Array, tail: ArrayLike<number>): Float64Array => {
    const to = new Float64Array(3 * n + 3)
    to.set(from)
    to.set(Array.from(tail), 3 * n)
    return to
  }
  const numbers = new Uint8Array(n + 1)
  numbers.set(s.numbers)
  numbers[n] = number
  return {
    ...copyOf(s),
    numbers,
    positions: grown(s.positions, position),
    velocities: grown(s.velocities, [0, 0, 0]),
  }
}

/** `repeats[k]` copies of the cell along lattice vector k. */
export function repeated(s: Structure, repeats: readonly [number, number, number]): Structure {
  if (!s.cell) throw new Error('only a structure with a cell can be repeated')
  const copies = repeats[0] * repeats[1] * repeats[2]
  const n = s.numbers.length
  if (n * copies > MAX_ATOMS) throw new Error(`${n * copies} atoms are more than ${MAX_ATOMS}`)
  const numbers = new Uint8Array(n * copies)
  const positions = new Float64Array(3 * n * copies)
  const velocities = new Float64Array(3 * n * copies)
  let copy = 0
  for (let a = 0; a < repeats[0]; a++)
    for (let b = 0; b < repeats[1]; b++)
      for (let c = 0; c < repeats[2]; c++, copy++) {
        numbers.set(s.numbers, n * copy)
        velocities.set(s.velocities, 3 * n * copy)
        for (let i = 0; i < n; i++)
          for (let k = 0; k < 3; k++)
            positions[3 * (n * copy + i) + k] =
              s.positions[3 * i + k]! + a * s.cell[k]! + b * s.cell[3 + k]! + c * s.cell[6 + k]!
      }
  const cell = s.cell.map((x, i) => x * repeats[Math.floor(i / 3)]!)
  return { ...copyOf(s), numbers, positions, velocities, cell }
}

/** Cell vectors from lengths (Angstrom) and angles (degrees): a along x, b in the xy plane. */
export function cellOf(
  lengths: readonly [number, number, number],
  angles: readonly [number, number, number],
): Cell {
  const [a, b, c] = lengths
  const cos = angles.map((x) => (x === 90 ? 0 : Math.cos((x * Math.PI) / 180)))
  const sinGamma = angles[2] === 90 ? 1 : Math.sin((angles[2] * Math.PI) / 180)
  const cx = c * cos[1]!
  const cy = (c * (cos[0]! - cos[1]! * cos[2]!)) / sinGamma
  const cz2 = c * c - cx * cx - cy * cy
  if (!(cz2 > 0)) throw new Error(`cell angles ${angles.join(', ')} span no volume`)
  return Float64Array.of(a, 0, 0, b * cos[2]!, b * sinGamma, 0, cx, cy, Math.sqrt(cz2))
}

/** Lengths (Angstrom) and angles (degrees) of a cell. */
export function cellParameters(cell: Cell): { lengths: number[]; angles: number[] } {
  const row = (i: number): number[] => [cell[3 * i]!, cell[3 * i + 1]!, cell[3 * i + 2]!]
  const dot = (u: number[], v: number[]): number => u[0]! * v[0]! + u[1]! * v[1]! + u[2]! * v[2]!
  const rows = [row(0), row(1), row(2)]
  const lengths = rows.map((r) => Math.sqrt(dot(r, r)))
  const angle = (i: number, j: number): number => {
    const d = lengths[i]! * lengths[j]!
    return d > 0 ? (Math.acos(Math.min(1, Math.max(-1, dot(rows[i]!, rows[j]!) / d))) * 180) / Math.PI : 0
  }
  return { lengths, angles: [angle(1, 2), angle(0, 2), angle(0, 1)] }
}

/** Inverse of a 3x3 matrix, row-major; null if it is singular. */
export function inverse3(m: ArrayLike<number>): Float64Array | null {
  const [a, b, c, d, e, f, g, h, i] = Array.from(m) as [
    number, number, number, number, number, number, number, number, number,
  ]
  const A = e * i - f * h
  const B = f * g - d * i
  const C = d * h - e * g
  const det = a * A + b * B + c * C
  if (!(Math.abs(det) > 1e-12)) return null
  return Float64Array.of(
    A / det, (c * h - b * i) / det, (b * f - c * e) / det,
    B / det, (a * i - c * g) / det, (c * d - a * f) / det,
    C / det, (b * g - a * h) / det, (a * e - b * d) / det,
  )
}

/** Row vector times matrix: fractional to Cartesian for a cell, and back for its inverse. */
export function times3(v: ArrayLike<number>, m: ArrayLike<number>, out: number[] | Float64Array = [0, 0, 0]): typeof out {
  const x = v[0]!
  const y = v[1]!
  const z = v[2]!
  for (let k = 0; k < 3; k++) out[k] = x * m[k]! + y * m[3 + k]! + z * m[6 + k]!
  return out
}

/** A cell in which the directions without a vector have one of unit length, orthogonal to the others. */
export function completed(cell: Cell): Cell {
  const out = cell.slice()
  const norm = (i: number): number => Math.hypot(out[3 * i]!, out[3 * i + 1]!, out[3 * i + 2]!)
  for (let i = 0; i < 3; i++) {
    if (norm(i) > 1e-6) continue
    const p = (i + 1) % 3
    const q = (i + 2) % 3
    const u = norm(p) > 1e-6 ? out.slice(3 * p, 3 * p + 3) : Float64Array.of(0.3, 0.5, 0.8)
    const v = norm(q) > 1e-6 ? out.slice(3 * q, 3 * q + 3) : Float64Array.of(-0.7, 0.1, 0.6)
    const w = [u[1]! * v[2]! - u[2]! * v[1]!, u[2]! * v[0]! - u[0]! * v[2]!, u[0]! * v[1]! - u[1]! * v[0]!]
    const length = Math.hypot(...w) || 1
    for (let k = 0; k < 3; k++) out[3 * i + k] = w[k]! / length
  }
  return out
}
